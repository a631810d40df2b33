"""permutation-learning."""
