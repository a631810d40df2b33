"""collapse-mse."""
