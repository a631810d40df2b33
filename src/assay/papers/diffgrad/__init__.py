"""diffgrad."""
