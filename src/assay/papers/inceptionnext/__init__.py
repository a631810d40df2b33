"""inceptionnext."""
