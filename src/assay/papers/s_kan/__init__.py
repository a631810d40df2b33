"""s-kan."""
