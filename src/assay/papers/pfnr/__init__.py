"""pfnr."""
