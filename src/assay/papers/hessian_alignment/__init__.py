"""hessian-alignment."""
