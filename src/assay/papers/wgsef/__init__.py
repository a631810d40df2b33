"""wgsef."""
