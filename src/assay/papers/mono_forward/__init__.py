"""mono-forward."""
