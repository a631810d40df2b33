"""deep-kernel-machines."""
