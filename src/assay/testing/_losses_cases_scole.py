"""Masked cross-entropy in the setting of `assay.testing.losses`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.losses.class_masking import MaskedCrossEntropy

__all__ = ["CASES"]

CASES: dict[str, Callable[[], Any]] = {"masked-cross-entropy": MaskedCrossEntropy}
