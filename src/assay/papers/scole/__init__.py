"""scole."""
