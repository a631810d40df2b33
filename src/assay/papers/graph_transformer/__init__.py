"""graph-transformer."""
