"""Tiny settings of the group-rational activation for the kernels' checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.kernels.rational_activation.functional import group_rational
from assay.kernels.rational_activation.op import group_rational_gradients_op, group_rational_op
from assay.kernels.rational_activation.reference import group_rational_reference
from assay.testing._kernel import Kernel

__all__ = ["RATIONAL_CASES"]


def _inputs(
    dtype: torch.dtype, generator: torch.Generator, *, numerators: int, denominators: int, degrees: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Draw x (3, 5, 6 channels) and coefficients."""
    shapes = [(3, 5, 6), (numerators, degrees[0] + 1), (denominators, degrees[1])]
    x, a, b = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, a, b


def _operators(x: Tensor, a: Tensor, b: Tensor) -> Sequence[tuple[Any, tuple[Any, ...]]]:
    tensors = (x.flatten(0, 1), a, b)
    upstream = torch.ones_like(tensors[0], requires_grad=False)
    detached = tuple(tensor.detach() for tensor in tensors)
    return [
        (group_rational_op, (*tensors, False)),
        (group_rational_gradients_op, (upstream, *detached, False)),
    ]


def _group_rational(numerators: int, denominators: int, degrees: tuple[int, int] = (5, 4)) -> Kernel:
    inputs = partial(_inputs, numerators=numerators, denominators=denominators, degrees=degrees)
    return Kernel(group_rational, group_rational_reference, inputs, _operators)


RATIONAL_CASES: dict[str, Callable[[], Kernel]] = {
    "group-rational": lambda: _group_rational(3, 3),
    "group-rational-shared-numerator": lambda: _group_rational(1, 2),
    "group-rational-shared-denominator": lambda: _group_rational(6, 1, (2, 3)),
    "group-rational-low-degrees": lambda: _group_rational(1, 1, (1, 2)),
}
