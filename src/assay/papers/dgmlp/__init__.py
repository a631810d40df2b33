"""dgmlp."""
