"""sequential-gradient-coding."""
