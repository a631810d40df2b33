"""proteinrpn."""
