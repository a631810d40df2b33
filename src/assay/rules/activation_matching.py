"""How far a layer's activations are from a second network's signals of the same depth.

Kao and Hariharan, arXiv:2409.19841, in the forms of their code; H is the height of a feature map, 1 for flat layers:

    prototype   256 mean_ij((A S^T)_ij - [y_i = j])^2 / d                                      (MLPs)
    normalized  mean_ij((a s^T)_ij - [y_i = j])^2 + 1/2 mean(a a^T - I_B)^2 + 1/2 mean(s s^T - I_C)^2,
                a and s the rows of A and S at length 1                                        (CNNs)
    squared     H mean(A - S)^2                                                                (autoencoders)

Shapes: activations A (B, ...) of d entries, S (C, ...) with one signal per class, or (B, ...) with one per sample;
labels y (B,). Departures: none; the 256 is a constant of the code, not the batch size. Cost: a product of A with S.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["normalized_match", "prototype_match", "squared_match"]

SCALE = 256


def prototype_match(a: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """Return 256 times the mean square of A S^T minus the same-class matrix, over d.

    Args:
        a: Activations (B, ...), d entries each.
        s: One signal per class, (C, ...).
        y: Labels, int64 (B,).

    Example:
        >>> prototype_match(torch.eye(2), torch.eye(2), torch.tensor([0, 1])).item()
        0.0
    """
    a, s = a.flatten(1), s.flatten(1)
    return SCALE * F.mse_loss(a @ s.T, _same_class(y, s)) / a.shape[1]


def normalized_match(a: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """Return how far cosines are from the same-class matrix, and those within each network from the identity.

    The identity within the activations keeps samples of one class apart too, as in the code.

    Args:
        a: Activations (B, ...); a row of zeros has cosine 0 with everything.
        s: One signal per class, (C, ...).
        y: Labels, int64 (B,).

    Example:
        >>> normalized_match(3 * torch.eye(2), torch.eye(2), torch.tensor([0, 1])).item() < 1e-9
        True
    """
    a, s = (_unit_rows(rows.flatten(1)) for rows in (a, s))
    between = F.mse_loss(a @ s.T, _same_class(y, s))
    within = [F.mse_loss(t @ t.T, torch.eye(len(t), dtype=t.dtype, device=t.device)) for t in (a, s)]
    return between + (within[0] + within[1]) / 2


def _same_class(y: Tensor, s: Tensor) -> Tensor:
    """Return [y_i = j], (B, C)."""
    return (y[:, None] == torch.arange(len(s), device=y.device)).to(s.dtype)


def _unit_rows(rows: Tensor) -> Tensor:
    # In float16 1e-8 is 0.
    return rows / (rows.norm(dim=1, keepdim=True) + max(1e-8, torch.finfo(rows.dtype).tiny))


def squared_match(a: Tensor, s: Tensor) -> Tensor:
    """Return the mean squared difference, times the height of feature maps.

    Args:
        a: Activations (B, ...).
        s: One signal per sample, of the same shape.

    Example:
        >>> squared_match(torch.ones(2, 3), torch.zeros(2, 3)).item()
        1.0
    """
    return F.mse_loss(a, s) * (a.shape[2] if a.ndim == 4 else 1)
