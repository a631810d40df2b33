"""zero-infinity."""
