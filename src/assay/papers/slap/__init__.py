"""slap."""
