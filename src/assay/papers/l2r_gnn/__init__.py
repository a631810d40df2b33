"""l2r-gnn."""
