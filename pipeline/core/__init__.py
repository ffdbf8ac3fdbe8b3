"""What every model has in common: the store, sources, tables, reports."""
