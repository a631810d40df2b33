"""lamb."""
