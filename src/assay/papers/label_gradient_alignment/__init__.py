"""label-gradient-alignment."""
