"""boosted-training."""
