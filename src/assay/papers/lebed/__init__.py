"""lebed."""
