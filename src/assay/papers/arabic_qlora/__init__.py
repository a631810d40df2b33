"""arabic-qlora."""
