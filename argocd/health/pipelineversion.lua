-- The pipeline server's webhook makes a version belong to its pipeline. One that came before the webhook belongs to
-- nobody, and no run can be started of it.
for _, owner in ipairs(obj.metadata.ownerReferences or {}) do
  if owner.kind == "Pipeline" then
    return { status = "Healthy", message = "a version of " .. owner.name }
  end
end
return { status = "Progressing", message = "the pipeline server has not taken it; delete it and apply it again" }
