"""interlayer-ptq."""
