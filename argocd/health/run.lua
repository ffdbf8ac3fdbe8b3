-- A run of Tekton's ends with its condition Succeeded.
for _, condition in ipairs((obj.status or {}).conditions or {}) do
  if condition.type == "Succeeded" then
    local healths = { True = "Healthy", False = "Degraded" }
    return { status = healths[condition.status] or "Progressing", message = condition.message or condition.reason }
  end
end
return { status = "Progressing", message = "Tekton has not started it yet" }
