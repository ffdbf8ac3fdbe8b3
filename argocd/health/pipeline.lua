-- It has no status: once the pipeline server has admitted it, it is there.
return { status = "Healthy", message = "admitted" }
