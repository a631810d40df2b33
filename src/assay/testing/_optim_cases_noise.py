"""Tiny settings of `assay.optim.GradientNoise`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.optim.gradient_noise import GradientNoise

__all__ = ["CASES"]


def _noise(base: type[torch.optim.Optimizer], eta: float, clip_norm: float | None = None, **options: Any) -> Any:
    return lambda: lambda parameters: GradientNoise(base(parameters, **options), eta, clip_norm=clip_norm)


CASES: dict[str, Callable[[], Any]] = {
    "gradient-noise": _noise(torch.optim.SGD, 0.3, lr=0.1, momentum=0.8),
    "gradient-noise-clipped": _noise(torch.optim.SGD, 0.01, 0.1, lr=0.1),
    "gradient-noise-adamw": _noise(torch.optim.AdamW, 1.0, lr=0.01),
}
