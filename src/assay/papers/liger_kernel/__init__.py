"""liger-kernel."""
