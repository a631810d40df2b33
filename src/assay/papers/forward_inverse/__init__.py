"""forward-inverse."""
