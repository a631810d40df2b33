"""generalized-collapse."""
