"""learngene-sws."""
