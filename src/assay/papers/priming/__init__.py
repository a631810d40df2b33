"""priming."""
