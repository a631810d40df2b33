"""Layers, blocks and initialisation."""

from __future__ import annotations

from assay._exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __path__[0])
