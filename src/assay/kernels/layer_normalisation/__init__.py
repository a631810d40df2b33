"""Layer normalisation that keeps its input and two float32 numbers per row."""

from __future__ import annotations

from assay.kernels.layer_normalisation.functional import LayerNorm, layer_norm
from assay.kernels.layer_normalisation.reference import layer_norm_reference

__all__ = ["LayerNorm", "layer_norm", "layer_norm_reference"]
