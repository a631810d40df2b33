"""The group-rational activation written plainly, autograd for the rest: what the other implementations must equal.

Shapes: x (..., D); G groups of D/G neighbouring channels; numerator (G, m + 1), denominator (G, n), lowest power first,
either of them with one row for all groups. Cost: some 3 (m + n) tensors of x's size for backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["group_rational_reference"]


def group_rational_reference(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return P(x) / Q(x) with P = sum a_i x^i and Q = 1 + sum |b_j| |x|^j, by Horner's scheme.

    Args, shapes and the result are those of `assay.kernels.group_rational`; inputs are not checked. Everything that
    autograd does works: second derivatives, forward mode, `torch.func`.
    """
    working = torch.promote_types(x.dtype, torch.float32)
    a, b = numerator.to(working), denominator.to(working)
    b = torch.where(b < 0, -b, b)  # unlike abs(), this has slope 1 at 0, so that b = 0 can learn
    groups = max(a.shape[0], b.shape[0])
    z = x.to(working).unflatten(-1, (groups, x.shape[-1] // groups))
    distance = torch.where(z < 0, -z, z)
    above, below = a[:, -1:], torch.zeros_like(b[:, :1])
    for i in range(a.shape[1] - 2, -1, -1):
        above = above * z + a[:, i : i + 1]
    for j in range(b.shape[1] - 1, -1, -1):
        below = (below + b[:, j : j + 1]) * distance
    return (above / (1 + below)).expand(z.shape).flatten(-2).to(x.dtype)
