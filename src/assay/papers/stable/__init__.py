"""stable."""
