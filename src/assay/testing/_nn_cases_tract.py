"""Cases of TrAct layers; small ridges multiply the rounding of half precision, so theirs is large."""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, nn

from assay.nn.first_layers import TrActConv2d, TrActLinear

__all__ = ["CASES"]

CASES: dict[str, tuple[Callable[[Generator], nn.Module], tuple[int, ...], float]] = {
    "tract-linear": (lambda generator: TrActLinear(6, 5, lam=0.5, generator=generator), (9, 2, 6), 3e-2),
    "tract-linear-few-rows": (lambda generator: TrActLinear(6, 5, lam=0.5, generator=generator), (3, 6), 3e-2),
    "tract-conv2d": (
        lambda generator: TrActConv2d(2, 4, 3, padding=1, lam=0.5, generator=generator),
        (2, 2, 5, 4),
        3e-2,
    ),
}
