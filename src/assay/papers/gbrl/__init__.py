"""gbrl."""
