"""target-surrogates."""
