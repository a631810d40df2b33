"""counter-current."""
