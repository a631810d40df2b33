"""kernel-collapse."""
