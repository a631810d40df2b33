"""learning-rules."""
