"""A folder for each model."""
