"""collapse-losses."""
