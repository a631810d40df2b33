"""KAT's backward pass, which FlashKAT does away with, on any device: every element adds to its group's shared sums.

Paper: "Kolmogorov-Arnold Transformer" (arXiv:2409.10594), whose kernel adds m + 1 + n numbers per element to the sums
of the element's group by atomic additions. Here `index_add_` does; on a CPU it adds in the order of the elements, one
running sum per coefficient. Only to be compared with: `group_rational` never calls it.

Shapes: upstream, x (R, D); a (G, m + 1), b (G, n) in the working dtype.
Cost: m + 1 + n additions an element that do not vectorise, each rounded to the working dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["group_rational_gradients_accumulating"]

_CHUNK = 64  # rows whose summands exist at once


@torch.no_grad()
def group_rational_gradients_accumulating(
    upstream: Tensor, x: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx (R, D), da (G, m + 1) and db (G, n), with running sums in the working dtype.

    Args:
        upstream: (R, D), the gradient by the result.
        x: (R, D).
        a: (G, m + 1).
        b: (G, n).
    """
    groups = len(a)
    result, of_a, of_b = torch.empty_like(x), torch.zeros_like(a), torch.zeros_like(b)
    group = torch.arange(groups).repeat_interleave(x.shape[1] // groups).to(x.device)
    own_a, own_b = a.t()[:, group], b.abs().t()[:, group]  # (m + 1, D) and (n, D)
    for start in range(0, len(x), _CHUNK):
        rows = slice(start, start + _CHUNK)
        z = x[rows].to(a.dtype)
        distance = z.abs()
        powers = torch.stack([z**i for i in range(a.shape[1])])
        distances = torch.stack([distance**j for j in range(1, b.shape[1] + 1)])
        above, below = (own_a[:, None] * powers).sum(0), 1 + (own_b[:, None] * distances).sum(0)
        slope = sum(i * own_a[i] * powers[i - 1] for i in range(1, a.shape[1]))
        below_slope = sum((j + 1) * own_b[j] * distance**j for j in range(b.shape[1]))
        of_above = upstream[rows].to(a.dtype) / below
        of_below = -of_above * above / below
        result[rows] = of_above * slope + of_below * torch.where(z < 0, -below_slope, below_slope)
        where = group.repeat(len(z))
        of_a.index_add_(0, where, (of_above * powers).flatten(1).t())
        of_b.index_add_(0, where, (of_below * distances).flatten(1).t())
    return result, of_a, torch.where(b < 0, -of_b, of_b)
