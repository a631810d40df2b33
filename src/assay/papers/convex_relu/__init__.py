"""convex-relu."""
