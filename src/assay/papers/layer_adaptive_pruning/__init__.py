"""layer-adaptive-pruning."""
