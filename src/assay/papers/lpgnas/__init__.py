"""lpgnas."""
