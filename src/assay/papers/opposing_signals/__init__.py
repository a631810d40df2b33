"""opposing-signals."""
