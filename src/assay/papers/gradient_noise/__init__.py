"""gradient-noise."""
