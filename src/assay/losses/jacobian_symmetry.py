"""Jacobian homeostasis: a penalty that is 0 where the Jacobian of a vector field is symmetric, without transposing it.

Laborieux and Zenke (ICLR 2024, arXiv:2309.02214), the homeostatic loss. With J = df/ds of a vector field f at a state s
of n neurons and noise eps ~ N(0, I):

    L = E_eps[ |J eps|^2 - eps^T J J eps ] / n = |J - J^T|_F^2 / (2 n)

by two forward-mode products. A leak, f(s) - s, changes nothing: the identity cancels in every draw. A draw is 0 for a
symmetric J, but may be negative otherwise.

Shapes: a state is a tensor (B, ...) or a dict of them, one row per sample; the field maps it to its like and treats
samples on their own; directions have one more axis in front, the draws.
Departures: draws are vectorised; `samples=None` takes the unit vectors in place of noise, which gives L exactly.
Cost: two forward-mode products per draw, and a backward pass through them where gradients are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from assay.errors import InvalidInput

__all__ = ["JacobianSymmetryLoss", "jacobian_directions", "jacobian_moments", "jacobian_symmetry_loss"]


def jacobian_directions(state: Any, samples: int | None, generator: torch.Generator | None = None) -> Any:
    """Return directions eps with mean eps eps^T = I, over noise or exactly.

    Args:
        state: A tensor (B, ...) or a dict of them.
        samples: Draws from N(0, I); None for the n unit vectors times sqrt(n).
        generator: Source of the noise.

    Returns:
        Like the state, with draws in front: (samples, B, ...) or (n, B, ...).
    """
    leaves, structure = tree_flatten(state)
    sizes = [leaf[0].numel() for leaf in leaves]
    if samples is None:
        units = math.sqrt(sum(sizes)) * torch.eye(sum(sizes), dtype=leaves[0].dtype, device=leaves[0].device)
        parts = [u[:, None].expand(-1, len(leaves[0]), -1) for u in units.split(sizes, dim=1)]
    else:
        shapes = [(samples, *leaf.shape) for leaf in leaves]
        device = generator.device if generator is not None else leaves[0].device
        options: Any = {"dtype": leaves[0].dtype, "device": device, "generator": generator}
        parts = [torch.randn(shape, **options).to(leaves[0].device) for shape in shapes]
    return tree_unflatten([p.reshape(len(p), *leaf.shape) for p, leaf in zip(parts, leaves, strict=True)], structure)


def jacobian_moments(field: Callable[[Any], Any], state: Any, directions: Any) -> tuple[Tensor, Tensor]:
    """Return |J eps|^2 and eps^T J J eps, whose means over draws are |J|_F^2 and tr(J J).

    Args:
        field: From a state to its like.
        state: Where the Jacobian is taken: a tensor (B, ...) or a dict of them.
        directions: As `jacobian_directions` gives them.

    Returns:
        Two tensors (draws, B).
    """

    def of_one_draw(eps: Any) -> tuple[Tensor, Tensor]:
        first = torch.func.jvp(field, (state,), (eps,))[1]
        second = torch.func.jvp(field, (state,), (first,))[1]
        return _inner(first, first), _inner(eps, second)

    squared, twice = torch.func.vmap(of_one_draw)(directions)
    return squared, twice


def _inner(a: Any, b: Any) -> Tensor:
    """Return each sample's inner product over all neurons, (B,)."""
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return torch.stack([(x * y).flatten(1).sum(1) for x, y in pairs]).sum(0)


def jacobian_symmetry_loss(field: Callable[[Any], Any], state: Any, directions: Any) -> Tensor:
    """Return the mean over draws and samples of (|J eps|^2 - eps^T J J eps) / n.

    Args:
        field: From a state to its like.
        state: Where the Jacobian is taken: a tensor (B, ...) or a dict of them.
        directions: As `jacobian_directions` gives them.

    Returns:
        A scalar, differentiable in the field's parameters.

    Example:
        >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> state = torch.zeros(1, 2)
        >>> round(jacobian_symmetry_loss(lambda s: s @ turn, state, jacobian_directions(state, None)).item(), 6)
        2.0
    """
    squared, twice = jacobian_moments(field, state, directions)
    return (squared - twice).mean() / sum(leaf[0].numel() for leaf in tree_leaves(state))


class JacobianSymmetryLoss(nn.Module):
    """Penalty on the asymmetry of any vector field's Jacobian, |J - J^T|_F^2 / (2 n) averaged over samples.

    Args:
        samples: Draws of noise per evaluation; None for the exact value, at the cost of 2 n products.
        generator: Source of the noise; None is torch's global generator.

    Raises:
        InvalidInput: If `samples` is below 1.

    Example:
        >>> layer = nn.Linear(3, 3)
        >>> loss = JacobianSymmetryLoss(samples=None)(lambda s: torch.tanh(layer(s)), torch.zeros(4, 3))
        >>> loss.backward()
        >>> layer.weight.grad.shape
        torch.Size([3, 3])
    """

    def __init__(self, samples: int | None = 5, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if samples is not None and samples < 1:
            raise InvalidInput(f"samples must be at least 1, or None for the exact value, not {samples}")
        self.samples, self.generator = samples, generator

    def forward(self, field: Callable[[Any], Any], state: Any) -> Tensor:
        """Return the loss of a field at a state; see `jacobian_symmetry_loss`."""
        return jacobian_symmetry_loss(field, state, jacobian_directions(state, self.samples, self.generator))
