"""physical-forward."""
