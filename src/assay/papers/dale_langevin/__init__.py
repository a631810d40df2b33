"""dale-langevin."""
