"""programmable-vi."""
