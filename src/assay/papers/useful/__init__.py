"""useful."""
