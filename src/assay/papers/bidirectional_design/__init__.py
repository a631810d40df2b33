"""bidirectional-design."""
