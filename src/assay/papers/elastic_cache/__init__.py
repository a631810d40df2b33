"""elastic-cache."""
