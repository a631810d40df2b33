"""pigeon."""
