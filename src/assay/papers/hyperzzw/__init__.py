"""hyperzzw."""
