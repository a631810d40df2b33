"""shallow-again."""
