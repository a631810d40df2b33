"""The blocks of a NoProp network as one deep network, for backpropagation through all of them.

The baselines of NoProp. link="mixture" is that of arXiv:2503.24322, section 5: z_t = (1 - al_t) z_{t-1} + al_t uhat_t
with uhat_t = softmax(logits_t), a mixture of one-hot embeddings, al_t = tanh(w_t) learned, and a linear layer on z_T.
The softmax between blocks and the layer behind their mixtures make it slow to train; link="logits" is the same blocks
as a plain residual network, z_t = z_{t-1} + logits_t, whose scores are the sum of all logits, so that a comparison with
backpropagation is not won by the weaker baseline.

Shapes: B samples, z_t (B, C), C classes. z_0 is noise in training and zero in evaluation.
Departures: w_t starts at 1 and the linear layer at the identity (not given; a random one costs many steps).
Cost: T blocks, all of whose activations are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models.noprop_net import NoPropNet

__all__ = ["NoPropChain"]


class NoPropChain(nn.Module):
    """A chain of the blocks of `NoPropNet`, an ordinary classifier.

    Args:
        input_shape: Shape of one sample.
        num_classes: Number of classes C.
        blocks: T, at least 1.
        link: What goes from block to block: "mixture" (the paper's) or "logits".
        encoder: As of `NoPropNet`.
        width: As of `NoPropNet`.
        channels: As of `NoPropNet`.
        dropout: As of `NoPropNet`.
        generator: Draws the initial weights and seeds the noise; None is torch's global generator.

    Raises:
        InvalidInput: If there is no such link, or a size is out of range.

    Example:
        >>> NoPropChain((1, 8, 8), 10, blocks=3, link="logits", width=16)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        blocks: int = 10,
        link: str = "mixture",
        encoder: str | Callable[[torch.Generator | None], nn.Module] = "mlp",
        width: int = 256,
        channels: Sequence[int] = (32, 64, 128),
        dropout: float = 0.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if link not in ("mixture", "logits"):
            raise InvalidInput(f"link must be 'mixture' or 'logits', not {link!r}")
        self.net = NoPropNet(input_shape, num_classes, blocks, encoder, width, channels, dropout, generator=generator)
        self.link = link
        if link == "mixture":
            self.gates = nn.Parameter(torch.ones(blocks))
            self.head = nn.utils.skip_init(nn.Linear, num_classes, num_classes)
            nn.init.eye_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores (B, C)."""
        start = z = self.net.start(x)
        for i, block in enumerate(self.net.blocks):
            # an nn.ModuleList forgets its members' type
            logits = block(z, block.encode(x))  # type: ignore[operator]
            z = z + logits if self.link == "logits" else torch.lerp(z, logits.softmax(1), self.gates[i].tanh())
        scores: Tensor = z - start if self.link == "logits" else self.head(z)
        return scores
