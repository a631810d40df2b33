"""tpsgd."""
