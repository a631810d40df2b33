"""hire."""
