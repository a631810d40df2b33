"""xor-grokking."""
