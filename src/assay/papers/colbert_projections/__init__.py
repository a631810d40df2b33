"""colbert-projections."""
