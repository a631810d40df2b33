"""Group normalisation that keeps its input and two float32 numbers per group."""

from __future__ import annotations

from assay.kernels.group_normalisation.functional import GroupNorm, group_norm
from assay.kernels.group_normalisation.reference import group_norm_reference

__all__ = ["GroupNorm", "group_norm", "group_norm_reference"]
