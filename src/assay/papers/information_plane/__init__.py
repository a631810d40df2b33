"""information-plane."""
