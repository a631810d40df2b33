"""Fixed random projections from the classes to a layer's units, the feedback of rules that do without a backward pass.

Frenkel, Lefebvre and Bol, arXiv:1909.01311 (distribution "kaiming", as in their code): each hidden layer i gets a
matrix B_i that is drawn once and never trained. A label's projection B_i^T y* is a row of it, an error's B_i^T e a
product.

Shapes: B_i (C, *units); labels (B,) or class vectors (B, C) are projected to (B, *units).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["fixed_projection", "project"]


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * 2 - 1


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


DISTRIBUTIONS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "normal": _normal,
    "uniform": _uniform,
    "sign": lambda shape, generator: torch.where(_uniform(shape, generator) < 0, -1.0, 1.0),
    "kaiming": lambda shape, generator: _uniform(shape, generator) * math.sqrt(6 / math.prod(shape[1:])),
}


def fixed_projection(
    num_classes: int, units: Sequence[int], distribution: str = "normal", *, generator: torch.Generator, like: Tensor
) -> Tensor:
    """Draw a projection.

    Args:
        num_classes: Number of classes C.
        units: Shape of a layer's output for one sample.
        distribution: "normal" N(0, 1), "uniform" U(-1, 1), "sign" +-1 with equal chances, "kaiming" U(-1, 1) times
            sqrt(6 / number of units).
        generator: Source of the numbers.
        like: A tensor with the wanted device and floating-point type.

    Returns:
        (C, *units), without gradient.

    Raises:
        InvalidInput: If there is no such distribution.

    Example:
        >>> fixed_projection(3, (4,), generator=torch.Generator().manual_seed(0), like=torch.empty(0)).shape
        torch.Size([3, 4])
    """
    if distribution not in DISTRIBUTIONS:
        raise InvalidInput(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, not {distribution!r}")
    return DISTRIBUTIONS[distribution]((num_classes, *units), generator).to(like.device, like.dtype)


def project(classes: Tensor, projection: Tensor) -> Tensor:
    """Project labels or class vectors to a layer's units.

    Args:
        classes: Labels, int64 (B,), or vectors over the classes such as an output error, (B, C).
        projection: (C, *units).

    Returns:
        (B, *units).

    Raises:
        InvalidInput: If it is neither.

    Example:
        >>> project(torch.tensor([1]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[3., 4.]])
    """
    if classes.dtype == torch.int64 and classes.ndim == 1:
        return projection[classes]
    if classes.is_floating_point() and classes.ndim == 2 and classes.shape[1] == len(projection):
        return torch.tensordot(classes.to(projection.dtype), projection, dims=1)
    expected = f"int64 labels (B,) or class vectors (B, {len(projection)})"
    raise InvalidInput(f"expected {expected}, got {classes.dtype} {tuple(classes.shape)}")
