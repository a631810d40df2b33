"""nfig."""
