"""Tiny settings of the normalisations and of the rotary embedding for the kernels' checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.kernels.group_normalisation.functional import group_norm
from assay.kernels.group_normalisation.op import group_norm_backward, group_norm_forward
from assay.kernels.group_normalisation.reference import group_norm_reference
from assay.kernels.layer_normalisation.functional import layer_norm
from assay.kernels.layer_normalisation.op import layer_norm_backward, layer_norm_forward
from assay.kernels.layer_normalisation.reference import layer_norm_reference
from assay.kernels.rms_normalisation.functional import rms_norm
from assay.kernels.rms_normalisation.op import rms_norm_backward, rms_norm_forward
from assay.kernels.rms_normalisation.reference import rms_norm_reference
from assay.kernels.rotary_embedding.functional import rope
from assay.kernels.rotary_embedding.op import rope_forward
from assay.kernels.rotary_embedding.reference import rope_reference
from assay.testing._kernel import Kernel

__all__ = ["NORM_CASES"]

SHAPE = (3, 5)  # the dimensions that are normalised


def _normals(*shapes: tuple[int, ...]) -> Callable[[torch.dtype, torch.Generator], tuple[Tensor, ...]]:
    def draw(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)

    return draw


def _rms_norm(*, weight: bool = True, **options: Any) -> Kernel:
    """`rms_norm` of (4, 3, 5) over its last two dimensions."""

    def operators(x: Tensor, weight: Tensor | None = None) -> Any:
        rows, flat = x.flatten(1), None if weight is None else weight.flatten()
        yield rms_norm_forward, (rows, flat, 1e-6, 1.0, "llama")
        plain, scale = rows.detach(), None if flat is None else flat.detach()
        r = torch.ones(rows.shape[0])
        yield rms_norm_backward, (plain, plain, r, scale, 1.0, True, scale is not None)

    return Kernel(
        call=lambda x, *rest: rms_norm(x, SHAPE, *rest, **options),
        reference=lambda x, *rest: rms_norm_reference(x, SHAPE, *rest, **options),
        inputs=_normals((4, *SHAPE), *([SHAPE] if weight else [])),
        operators=operators,
    )


def _layer_norm(*, weight: bool = True) -> Kernel:
    """`layer_norm` of (4, 3, 5) over its last two dimensions."""

    def operators(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Any:
        rows, statistics = x.detach().flatten(1), torch.ones(x.shape[0], 1)
        flat = [None if t is None else t.flatten() for t in (weight, bias)]
        yield layer_norm_forward, (x.flatten(1), *flat, 1e-6)
        scale = None if weight is None else weight.detach().flatten()
        yield layer_norm_backward, (rows, rows, statistics, statistics, scale, [True, weight is not None, False])

    return Kernel(
        call=lambda x, w=None, b=None: layer_norm(x, SHAPE, w, b, 1e-6),
        reference=lambda x, w=None, b=None: layer_norm_reference(x, SHAPE, w, b, 1e-6),
        inputs=_normals((4, *SHAPE), *([SHAPE] * 2 if weight else [])),
        operators=operators,
    )


def _group_norm(*, weight: bool = True) -> Kernel:
    """`group_norm` of (3, 6, 2, 5) in 2 groups."""

    def operators(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Any:
        flat, statistics = x.flatten(2), torch.ones(3, 2)
        yield group_norm_forward, (flat, 2, weight, bias, 1e-6)
        plain, scale = flat.detach(), None if weight is None else weight.detach()
        needs = [True, weight is not None, False]
        yield group_norm_backward, (plain, plain, statistics, statistics, scale, 2, needs)

    return Kernel(
        call=lambda x, w=None, b=None: group_norm(x, 2, w, b, 1e-6),
        reference=lambda x, w=None, b=None: group_norm_reference(x, 2, w, b, 1e-6),
        inputs=_normals((3, 6, 2, 5), *([(6,)] * 2 if weight else [])),
        operators=operators,
    )


def _rope(*, unsqueeze_dim: int = 1) -> Kernel:
    """`rope` of 3 and 1 heads of 6 features, 2 sequences of 5 tokens."""
    shapes = [(2, heads, 5, 6) if unsqueeze_dim == 1 else (2, 5, heads, 6) for heads in (3, 1)]

    def inputs(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        return *_normals(*shapes)(dtype, generator), torch.randint(0, 50, (2, 5), generator=generator)

    def angles(positions: Tensor) -> tuple[Tensor, Tensor]:
        # The halves differ, which the usual ones don't: a formula that mixes them up must not pass.
        turns = positions.unsqueeze(-1) * torch.tensor([1.0, 0.3, 0.1, 0.7, 0.2, 0.05])
        return turns.cos(), turns.sin()

    def joined(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
        def call(q: Tensor, k: Tensor, positions: Tensor) -> Tensor:
            rotated = function(q, k, *angles(positions), unsqueeze_dim=unsqueeze_dim)
            return torch.cat([x.flatten() for x in rotated])

        return call

    def operators(q: Tensor, k: Tensor, positions: Tensor) -> Any:
        if unsqueeze_dim == 1:
            yield rope_forward, (q, k, *angles(positions))

    return Kernel(call=joined(rope), reference=joined(rope_reference), inputs=inputs, operators=operators)


NORM_CASES: dict[str, Callable[[], Kernel]] = {
    "rms-norm": _rms_norm,
    "rms-norm-gemma": lambda: _rms_norm(offset=1.0, casting="gemma", eps=1e-2),
    "rms-norm-none": lambda: _rms_norm(casting="none"),
    "rms-norm-plain": lambda: _rms_norm(weight=False),
    "layer-norm": _layer_norm,
    "layer-norm-plain": lambda: _layer_norm(weight=False),
    "group-norm": _group_norm,
    "group-norm-plain": lambda: _group_norm(weight=False),
    "rope": _rope,
    "rope-tokens-first": lambda: _rope(unsqueeze_dim=2),
}
