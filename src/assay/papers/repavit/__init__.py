"""repavit."""
