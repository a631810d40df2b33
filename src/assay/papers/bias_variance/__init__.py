"""bias-variance."""
