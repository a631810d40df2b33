"""Cross-entropy of a linear head over a large vocabulary: a chunk of rows at a time, gradients in the forward pass."""

from __future__ import annotations

from assay.kernels.fused_linear_cross_entropy.functional import LinearCrossEntropy, linear_cross_entropy
from assay.kernels.fused_linear_cross_entropy.reference import linear_cross_entropy_reference

__all__ = ["LinearCrossEntropy", "linear_cross_entropy", "linear_cross_entropy_reference"]
