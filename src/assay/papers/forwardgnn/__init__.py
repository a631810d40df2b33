"""forwardgnn."""
