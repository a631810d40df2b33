"""stable-spam."""
