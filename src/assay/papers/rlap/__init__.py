"""rlap."""
