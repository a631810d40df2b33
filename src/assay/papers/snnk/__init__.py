"""snnk."""
