"""gnn-collapse."""
