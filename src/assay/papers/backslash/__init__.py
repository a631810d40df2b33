"""backslash."""
