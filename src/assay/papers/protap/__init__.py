"""protap."""
