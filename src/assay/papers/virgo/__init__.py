"""virgo."""
