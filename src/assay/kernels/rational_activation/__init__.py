"""Group-rational activation: a learned ratio of two polynomials per group of channels."""

from __future__ import annotations

from assay.kernels.rational_activation.functional import group_rational
from assay.kernels.rational_activation.reference import group_rational_reference

__all__ = ["group_rational", "group_rational_reference"]
