"""gnnpipe."""
