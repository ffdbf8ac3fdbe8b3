-- It is there when its Deployment and its Service are, and a pod answers.
local waiting = "Triggers has not looked at it yet"
for _, condition in ipairs((obj.status or {}).conditions or {}) do
  if condition.type == "Ready" then
    if condition.status == "True" then
      return { status = "Healthy", message = "it listens" }
    end
    waiting = condition.message or condition.reason or "no pod answers"
  end
end
return { status = "Progressing", message = waiting }
