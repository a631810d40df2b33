"""graphgpt."""
