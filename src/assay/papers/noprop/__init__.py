"""noprop."""
