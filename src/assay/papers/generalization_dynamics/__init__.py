"""generalization-dynamics."""
