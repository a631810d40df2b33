"""fire."""
