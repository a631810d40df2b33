"""One folder per paper: its card, its study and the evidence that the study produced."""
