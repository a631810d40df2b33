"""Root-mean-square normalisation that keeps its input and one number per row, and recomputes the rest."""

from __future__ import annotations

from assay.kernels.rms_normalisation.functional import RMSNorm, rms_norm
from assay.kernels.rms_normalisation.reference import rms_norm_reference

__all__ = ["RMSNorm", "rms_norm", "rms_norm_reference"]
