"""auto-gnn."""
