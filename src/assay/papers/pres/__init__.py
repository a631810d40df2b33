"""pres."""
