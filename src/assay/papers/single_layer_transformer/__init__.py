"""single-layer-transformer."""
