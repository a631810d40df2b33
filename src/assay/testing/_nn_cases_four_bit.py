"""The linear layer with simulated 4-bit numbers in the setting of `assay.testing.nn`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Generator, nn

from assay.compress.fake_quantization import FakeQuantLinear
from assay.compress.four_bit import FP4, Int4

__all__ = ["CASES"]


def _layer(**options: Any) -> Callable[[Generator], nn.Module]:
    return lambda generator: FakeQuantLinear(6, 5, generator=generator, **options)


# bfloat16 puts some numbers on the other side of a tie, a step of a seventh of the group's largest number.
ROUNDED = 0.15

CASES: dict[str, tuple[Callable[[Generator], nn.Module], tuple[int, ...], float]] = {
    "fake-quant-linear": (
        _layer(weight=Int4(group=4), act=Int4(group=4, outliers=2, symmetric=True)),
        (3, 2, 6),
        ROUNDED,
    ),
    "fake-quant-linear-fp4": (_layer(weight=FP4(group=6, grid="e2m1"), act=FP4(group=6)), (7, 6), ROUNDED),
}
