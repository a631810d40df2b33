"""Gated activations that keep their two inputs only, and recompute the activation for the gradients."""

from __future__ import annotations

from assay.kernels.gated_activations.functional import geglu, swiglu
from assay.kernels.gated_activations.reference import geglu_reference, swiglu_reference

__all__ = ["geglu", "geglu_reference", "swiglu", "swiglu_reference"]
