"""collapse-models."""
