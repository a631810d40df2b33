"""projection-head."""
