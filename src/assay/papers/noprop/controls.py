"""Rules that train NoProp's blocks, or leave them, without any denoising: what NoProp has to be compared with.

Every block sees the input, so a block alone can classify. These controls show what is left for the chain to earn.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.models._layers import linear
from assay.models.noprop_net import NoPropNet
from assay.rules.rule import Rule
from assay.rules.splitting import trainable

__all__ = ["IndependentBlocks", "RandomBlocks"]


class IndependentBlocks(Rule):
    """Each block of a `NoPropNet` by plain cross-entropy with pure noise for the label; they predict by their mean.

    With one block it is backpropagation of that block.

    Args:
        model: A `NoPropNet`.
        num_classes: Number of classes C, that of the model.
        generator: Not used; the noise is the model's own.
    """

    local = True
    needs = "denoiser"

    def __init__(self, model: NoPropNet, num_classes: int, generator: torch.Generator | None = None) -> None:
        super().__init__(model, generator)

    @property
    def _net(self) -> NoPropNet:
        return cast(NoPropNet, self.model)

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add each block's own gradient, one graph at a time; see `Rule.backward`."""
        logs = {}
        for i in range(len(self._net.blocks)):
            loss = F.cross_entropy(self._net.block_scores(x.detach(), i), y)
            loss.backward()
            logs[f"loss/block{i + 1}"] = loss.detach()
        return logs | {"loss": torch.stack(list(logs.values())).sum()}

    def groups(self) -> list[list[nn.Parameter]]:
        """Return one group per block."""
        return [trainable(block) for block in self._net.blocks]

    def _scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)
        return scores

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        return {f"block{i + 1}": self._net.block_scores(x, i) for i in range(len(self._net.blocks))}


class RandomBlocks(Rule):
    """A linear head on the encodings of all blocks of a `NoPropNet`, whose weights stay as they were drawn.

    Args:
        model: A `NoPropNet`, kept in evaluation mode.
        num_classes: Number of classes C.
        generator: Draws the head's initial weights.
    """

    local = True
    needs = "denoiser"

    def __init__(self, model: NoPropNet, num_classes: int, generator: torch.Generator | None = None) -> None:
        super().__init__(model, generator)
        model.eval()
        with torch.no_grad():
            width = self._encoded(torch.zeros(2, *model.input_shape)).shape[1]
        self.top = linear(width, num_classes, generator=self.generator)

    def _encoded(self, x: Tensor) -> Tensor:
        return torch.cat([block.encode(x) for block in cast(NoPropNet, self.model).blocks], dim=1)  # type: ignore[operator]

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add the head's gradient; see `Rule.backward`."""
        with torch.no_grad():
            h = self._encoded(x)
        loss = F.cross_entropy(self.top(h), y)
        loss.backward()
        return {"loss": loss.detach()}

    def groups(self) -> list[list[nn.Parameter]]:
        """Return the head."""
        return [trainable(self.top)]

    def frozen(self) -> list[nn.Module]:
        """Return the model."""
        return [self.model]

    def head(self) -> nn.Linear | None:
        """Return the head."""
        return self.top

    def _scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.top(self._encoded(x))
        return scores

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        return {"encodings": self._encoded(x)}
