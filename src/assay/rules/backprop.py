"""Ordinary backpropagation as a learning rule: the reference that every other rule is compared with.

`backward` is `loss(model(x), y).backward()` and nothing else, so `.grad` is bit-equal to a plain loop's, and so is the
cost.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.rules.rule import Rule
from assay.rules.splitting import Blocks, blocks, trainable

__all__ = ["Backprop"]


class Backprop(Rule):
    """Gradient of one loss through the whole network.

    Args:
        model: Any module from inputs to scores.
        loss: `loss(scores, targets) -> scalar`; cross-entropy by default. A loss with parameters is trained too.

    Example:
        >>> import torch
        >>> rule = Backprop(nn.Linear(3, 2))
        >>> sorted(rule.backward(torch.ones(4, 3), torch.zeros(4, dtype=torch.long)))
        ['loss']
    """

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> None:
        super().__init__(model)
        self.loss = loss

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add the gradient of the loss to `.grad`; see `Rule.backward`."""
        loss = self.loss(self.model(x), y)
        loss.backward()
        return {"loss": loss.detach()}

    def groups(self) -> list[list[nn.Parameter]]:
        """Return one group: everything that requires gradients."""
        return [trainable(self)]

    def _scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)
        return scores

    def _blocks(self) -> Blocks | None:
        if not isinstance(self.model, nn.Sequential):
            return None
        try:
            found = blocks(self.model)
        except InvalidInput:
            return None
        return found if found.head is not None else None

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        found = self._blocks()
        if found is not None:
            return found.outputs(x)
        name, read = "features", dict[str, Tensor]()
        head = self.head()
        if head is None:
            raise InvalidInput("the model has no nn.Linear whose input could be called its features")
        hook = head.register_forward_pre_hook(lambda _, inputs: read.update({name: inputs[0]}))
        try:
            self.model(x)
        finally:
            hook.remove()
        return read

    def head(self) -> nn.Linear | None:
        """Return the network's last `nn.Linear`."""
        return next((m for m in reversed(list(self.model.modules())) if isinstance(m, nn.Linear)), None)
