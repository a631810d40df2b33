"""heavy-tails."""
