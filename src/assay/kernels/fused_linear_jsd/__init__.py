"""Jensen-Shannon divergence between two linear heads: a chunk of rows at a time, gradients in the forward pass."""

from __future__ import annotations

from assay.kernels.fused_linear_jsd.functional import linear_jsd
from assay.kernels.fused_linear_jsd.reference import linear_jsd_reference

__all__ = ["linear_jsd", "linear_jsd_reference"]
