"""flashkat."""
