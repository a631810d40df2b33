"""g2gnet."""
