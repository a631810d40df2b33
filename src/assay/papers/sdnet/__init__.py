"""sdnet."""
