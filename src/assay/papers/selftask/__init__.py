"""selftask."""
