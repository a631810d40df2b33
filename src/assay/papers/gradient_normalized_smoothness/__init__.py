"""gradient-normalized-smoothness."""
