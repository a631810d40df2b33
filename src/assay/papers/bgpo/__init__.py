"""bgpo."""
