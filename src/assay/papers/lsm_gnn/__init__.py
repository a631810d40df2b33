"""lsm-gnn."""
