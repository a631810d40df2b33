"""transnext."""
