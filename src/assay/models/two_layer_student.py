"""Two-layer tanh network in the NTK's scaling, the student of `heavy-tails`.

Kothapalli et al. (2025, arXiv:2406.04657): f(x) = h^{-1/2} a^T tanh(d^{-1/2} W x), all entries of W and a standard
normal, no biases, a frozen.

Shapes: B samples of d numbers, h hidden units, C outputs; `hidden.weight` is W (h, d), `head.weight` is a (C, h).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["TwoLayerStudent"]


class TwoLayerStudent(nn.Module):
    """The network; `model(x)` is (B, C), `model.hidden_features(x)` what the last layer reads.

    Args:
        input_shape: Shape of one sample; flattened to d numbers.
        outputs: C.
        width: h.
        train_last: Whether the last layer is trained too.
        generator: Draws the weights; None is torch's global generator.

    Raises:
        InvalidInput: If a size is below 1.

    Example:
        >>> model = TwoLayerStudent((10,), width=50)
        >>> model(torch.zeros(4, 10)).shape, [name for name, p in model.named_parameters() if p.requires_grad]
        (torch.Size([4, 1]), ['hidden.weight'])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int = 1,
        width: int = 1500,
        *,
        train_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        d = math.prod(input_shape)
        if min(d, outputs, width) < 1:
            raise InvalidInput(f"expected sizes of at least 1; got input {d}, outputs {outputs}, width {width}")
        self.hidden = nn.utils.skip_init(nn.Linear, d, width, bias=False)
        self.head = nn.utils.skip_init(nn.Linear, width, outputs, bias=False)
        for layer in (self.hidden, self.head):
            nn.init.normal_(layer.weight, generator=generator)
        self.head.requires_grad_(train_last)

    def hidden_features(self, x: Tensor) -> Tensor:
        """Return tanh(d^{-1/2} W x), (B, h)."""
        return torch.tanh(self.hidden(x.flatten(1)) / math.sqrt(self.hidden.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x), (B, C)."""
        return self.head(self.hidden_features(x)) / math.sqrt(self.head.in_features)
