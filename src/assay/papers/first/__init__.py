"""first."""
