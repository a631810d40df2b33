"""Top-k activation: ReLU that keeps only the k largest entries of each vector, and the MLP built on it.

Paper: "The Lazy Neuron Phenomenon" (Li et al., ICLR 2023, arXiv:2210.06313), section on the Top-k transformer:
y = W_2 keep_k(relu(W_1 x + b_1)) + b_2, where keep_k sets all but the k largest entries to 0. Gradients flow through
the kept entries only. Ties are broken in any way, but never more than k entries are kept.

Shapes: z (..., D), one vector of D entries along `dim`. With k >= D it is ReLU, bit for bit.
Cost: a partial sort of D entries per vector beside the ReLU; keeps k int64 indices per vector for backward.
The zeros are not exploited: the second matrix product is as dense as before, see `assay.probes.ActivationSparsity`
for the operations that could be left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["TopK", "TopKMLP", "keep_top_k"]


def keep_top_k(z: Tensor, k: int, dim: int = -1) -> Tensor:
    """Return z where it is among the k largest entries along a dimension, and 0 elsewhere.

    Args:
        z: Floats of any shape.
        k: How many entries are kept, at least 1.
        dim: The dimension along which entries compete.

    Returns:
        A tensor of z's shape.

    Raises:
        InvalidInput: If k is below 1.

    Example:
        >>> keep_top_k(torch.tensor([[3.0, 1.0, 2.0]]), 2)
        tensor([[3., 0., 2.]])
    """
    if k < 1:
        raise InvalidInput(f"k must be at least 1, not {k}")
    if k >= z.shape[dim]:
        return z
    values, places = z.topk(k, dim=dim, sorted=False)
    return torch.zeros_like(z).scatter(dim, places, values)


class TopK(nn.Module):
    """ReLU, then only the k largest entries of each vector.

    Args:
        k: How many entries are kept, at least 1; from the vector's size on this is ReLU.
        dim: The dimension along which entries compete; 1 for channels of images (B, C, H, W).

    Raises:
        InvalidInput: If k is below 1.

    Example:
        >>> TopK(2)(torch.tensor([[3.0, -1.0, 2.0, 1.0]]))
        tensor([[3., 0., 2., 0.]])
    """

    def __init__(self, k: int, dim: int = -1) -> None:
        super().__init__()
        if k < 1:
            raise InvalidInput(f"k must be at least 1, not {k}")
        self.k, self.dim = k, dim

    def forward(self, z: Tensor) -> Tensor:
        """Return keep_k(relu(z)), of z's shape."""
        return keep_top_k(z.relu(), self.k, self.dim)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"k={self.k}, dim={self.dim}"


class TopKMLP(nn.Module):
    """The MLP of a Top-k transformer: Linear(d, d_ff), `TopK`, Linear(d_ff, d).

    Args:
        d: Width of inputs and outputs.
        d_ff: Hidden units.
        k: How many of them may be active per token.
        bias: Whether the linear layers have biases.
        generator: Draws the initial weights (torch's default distribution); None is torch's global generator.

    Raises:
        InvalidInput: If a size is below 1.

    Example:
        >>> mlp = TopKMLP(4, 16, k=3)
        >>> mlp(torch.ones(2, 5, 4)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(
        self, d: int, d_ff: int, k: int, *, bias: bool = True, generator: torch.Generator | None = None
    ) -> None:
        if min(d, d_ff) < 1:
            raise InvalidInput(f"widths must be at least 1, got {d} and {d_ff}")
        super().__init__()
        self.enter = _linear(d, d_ff, bias, generator)
        self.activation = TopK(k)
        self.leave = _linear(d_ff, d, bias, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., d) for x (..., d)."""
        return self.leave(self.activation(self.enter(x)))


def _linear(fan_in: int, fan_out: int, bias: bool, generator: torch.Generator | None) -> nn.Linear:
    """Return a linear layer with torch's default initialisation from a generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=bias)
    bound = fan_in**-0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer
