"""sortednet."""
