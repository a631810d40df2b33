"""shadowkv."""
