"""Rotary position embedding of queries and keys in one go, keeping nothing but cosines and sines."""

from __future__ import annotations

from assay.kernels.rotary_embedding.functional import rope
from assay.kernels.rotary_embedding.reference import rope_reference

__all__ = ["rope", "rope_reference"]
