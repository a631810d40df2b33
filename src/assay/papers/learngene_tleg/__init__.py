"""learngene-tleg."""
