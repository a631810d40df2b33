"""grokking-edge."""
