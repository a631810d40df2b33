"""w2pgnn."""
