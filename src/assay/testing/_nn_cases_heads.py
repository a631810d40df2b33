"""Cases of projection heads and of heads that are not trained."""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, nn

from assay.nn.fixed_simplex import SimplexETFLinear
from assay.nn.projection_heads import FixedReweightingHead, WithProjectionHead, projection_head

__all__ = ["CASES"]


def _with_head(generator: Generator) -> nn.Module:
    return WithProjectionHead(
        projection_head("linear", 6, generator=generator), projection_head("mlp", 6, generator=generator)
    )


# A simplex's rows add up to 0, so that the checks' nearly constant upstream gradients cancel, and rounding stays.
CANCELLED = 0.1

CASES: dict[str, tuple[Callable[[Generator], nn.Module], tuple[int, ...], float]] = {
    "fixed-reweighting": (lambda generator: FixedReweightingHead(6, kappa=1.5), (3, 2, 6), 3e-2),
    "with-projection-head": (_with_head, (5, 6), 3e-2),
    "simplex-etf": (lambda generator: SimplexETFLinear(6, 4), (3, 2, 6), CANCELLED),
    "simplex-etf-turned": (
        lambda generator: SimplexETFLinear(6, 7, bias=False, generator=generator),
        (5, 6),
        CANCELLED,
    ),
}
