"""adadagrad."""
