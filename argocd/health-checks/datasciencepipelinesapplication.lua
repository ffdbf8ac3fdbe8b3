local waiting = "the operator has not looked at it yet"
for _, condition in ipairs((obj.status or {}).conditions or {}) do
  if condition.type == "Ready" then
    if condition.status == "True" then
      return { status = "Healthy", message = "the pipeline server is ready" }
    end
    waiting = condition.message or condition.reason or "it is not ready"
    if condition.reason == "FailingToDeploy" then
      return { status = "Degraded", message = waiting }
    end
  end
end
return { status = "Progressing", message = waiting }
