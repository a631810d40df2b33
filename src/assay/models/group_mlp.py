"""Two-layer network of group arithmetic: operands in, scores of the product out, nothing but W, an activation and V.

Tian (2025, arXiv:2509.21519) and its official code: scores = sigma(x W) V with sigma(z) = z^2 unless told otherwise,
no biases, x the one-hot operands side by side.

Shapes: B samples, R operands, M elements of the group, K hidden nodes; inputs one-hot (B, R M) or int64 (B, R).
Initialisation is torch's default. Index inputs gather columns of W and save the product with zeros; they give the same
scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._layers import linear

__all__ = ["GroupMLP"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "square": torch.square,
    "relu": torch.relu,
    "silu": F.silu,
    "relu-square": lambda z: torch.relu(z).square(),
}


class GroupMLP(nn.Module):
    """sigma(x W) V on operands of a finite group.

    Args:
        input_shape: Shape of one one-hot sample, (R M,).
        outputs: Number of group elements M.
        width: Hidden nodes K.
        activation: "square", "relu", "silu" or "relu-square".
        generator: Draws the initial weights; None is torch's global generator, as in `nn.Linear`.

    Raises:
        InvalidInput: On an unknown activation, or sizes that do not fit.

    Example:
        >>> import torch
        >>> model = GroupMLP((10,), 5, width=16)
        >>> pairs = torch.tensor([[1, 4], [0, 2]])
        >>> one_hot = torch.nn.functional.one_hot(pairs, 5).flatten(1).float()
        >>> torch.allclose(model(pairs), model(one_hot), atol=1e-6)
        True
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        width: int = 256,
        activation: str = "square",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        size = math.prod(input_shape)
        if min(size, outputs, width) < 1 or size % max(outputs, 1):
            raise InvalidInput(
                f"GroupMLP needs inputs as wide as a multiple of its {outputs} outputs, and a width of at least 1; "
                f"got input {size}, width {width}"
            )
        if activation not in ACTIVATIONS:
            raise InvalidInput(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
        self.elements, self.activation = outputs, activation
        self.hidden = linear(size, width, bias=False, generator=generator)
        self.head = linear(width, outputs, bias=False, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, M) of one-hot operands (B, R M) or element indices, int64 (B, R)."""
        if x.is_floating_point():
            z = self.hidden(x.flatten(1))
        else:
            columns = self.hidden.weight.T.contiguous()
            z = sum(columns.index_select(0, operand + r * self.elements) for r, operand in enumerate(x.unbind(dim=1)))
        scores: Tensor = self.head(ACTIVATIONS[self.activation](z))
        return scores
