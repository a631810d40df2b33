"""convergent-graph-solver."""
