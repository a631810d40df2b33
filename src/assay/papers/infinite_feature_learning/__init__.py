"""infinite-feature-learning."""
