"""lazy-neuron."""
