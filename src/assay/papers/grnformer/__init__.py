"""grnformer."""
