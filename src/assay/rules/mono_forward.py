"""Mono-Forward: every block learns from the cross-entropy of its own linear readout, with no gradient between blocks.

Gong, Li and Abdulla, arXiv:2501.09238, as measured by Spyra, arXiv:2509.19063. For blocks l = 1..L with a_0 = x:

    a_l = block_l(sg(a_{l-1}));   G_l = a_l M_l^T;   loss_l = CE(G_l, y);   update block_l and M_l only.

Shapes: x (B, ...), a_l (B, ...) flattened to (B, d_l) for the readout, M_l (C, d_l), G_l (B, C).
Departures: blocks may be convolutional (their output is flattened for M_l); any loss of scores and targets may stand in
for cross-entropy; the early stopping of each layer in arXiv:2509.19063 is left to the training loop.
Cost: one backward pass per block, whose graph is freed before the next block runs; no input gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._layers import linear
from assay.rules._loss_check import check_class_loss
from assay.rules.rule import Rule
from assay.rules.splitting import block_widths, trainable
from assay.rules.splitting import blocks as find_blocks

__all__ = ["MonoForward"]

INPUT = "raw input"


class MonoForward(Rule):
    """Local cross-entropy per block.

    Args:
        model: An `nn.Sequential` of blocks; a linear head at its end is not used, the readouts take its place.
        num_classes: Number of classes C, at least 2.
        blocks: Names of the blocks where the model is no `nn.Sequential`.
        schedule: "simultaneous" updates all blocks on every mini-batch (arXiv:2501.09238); "sequential" trains block
            after block, one phase each, and freezes what is done (arXiv:2509.19063).
        readout: "last" predicts with the last block's scores, "sum" with the sum over all blocks.
        project_input: Whether a readout of the raw input is trained too, in a first phase of its own if sequential;
            it takes no part in prediction.
        loss: `loss(scores, targets) -> scalar` of each block.
        input_shape: Shape of one input, where neither the model nor its first layer tells.
        generator: Draws the readouts' initial weights.

    Raises:
        InvalidInput: If the model has no blocks, an option has no such value, or the loss can't be used.

    Example:
        >>> from assay.models.mlp import MLP
        >>> rule = MonoForward(MLP((4,), 3, width=8), num_classes=3)
        >>> sorted(rule.backward(torch.ones(2, 4), torch.tensor([0, 1])))
        ['loss', 'loss/block1', 'loss/block2']
    """

    local = True
    needs = "blocks"

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        blocks: Sequence[str] | None = None,
        schedule: str = "simultaneous",
        readout: str = "last",
        project_input: bool = False,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        input_shape: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, generator)
        _check_options(num_classes, schedule, readout)
        found = find_blocks(model, blocks)
        input_width, widths = block_widths(found, model, input_shape)
        self.names, self.layers, self.loss, self.readout = list(found.names), list(found.modules), loss, readout
        if project_input:
            self.names.insert(0, INPUT)
            self.layers.insert(0, nn.Identity())
            widths.insert(0, input_width)
        self.first_block = int(project_input)
        like = next(model.parameters())
        check_class_loss(loss, num_classes, like)
        projections = (linear(d, num_classes, bias=False, generator=self.generator) for d in widths)
        self.projections = nn.ModuleList(projections).to(like.device, like.dtype)
        self.sequential = schedule == "sequential"
        if self.sequential:
            self.phase_names = tuple(self.names)

    def _trained(self) -> range:
        """Indices of the layers that the current phase trains."""
        return range(self._phase, self._phase + 1) if self.sequential else range(len(self.layers))

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add each trained block's own gradient to `.grad`; see `Rule.backward`."""
        trained, logs, losses = self._trained(), {}, []
        a = x.detach()
        with torch.no_grad():
            for layer in self.layers[: trained.start]:
                a = layer(a)
        for i in trained:
            a = self.layers[i](a)
            loss = self.loss(self.projections[i](a.flatten(1)), y)
            loss.backward()
            logs[f"loss/{self.names[i]}"] = loss.detach()
            losses.append(loss.detach())
            a = a.detach()
        logs["loss"] = torch.stack(losses).sum()
        return logs

    def groups(self) -> list[list[nn.Parameter]]:
        """Return one group per trained block: its parameters and its readout."""
        return [trainable(self.layers[i], self.projections[i]) for i in self._trained()]

    def frozen(self) -> list[nn.Module]:
        """Return the blocks before the one that a sequential schedule trains."""
        return self.layers[: self._trained().start]

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {}
        for name, layer in zip(self.names[self.first_block :], self.layers[self.first_block :], strict=True):
            outputs[name] = x = layer(x)
        return outputs

    def _scores(self, x: Tensor) -> Tensor:
        outputs = list(self._features(x).values())
        read = list(self.projections)[self.first_block :]
        if self.readout == "last":
            outputs, read = outputs[-1:], read[-1:]
        return torch.stack([project(a.flatten(1)) for project, a in zip(read, outputs, strict=True)]).sum(0)

    def head(self) -> nn.Linear | None:
        """Return the last block's readout; None where prediction sums over several."""
        last = self.projections[-1]
        single = self.readout == "last" or len(self.projections) - self.first_block == 1
        return last if single and isinstance(last, nn.Linear) else None


def _check_options(num_classes: int, schedule: str, readout: str) -> None:
    if num_classes < 2:
        raise InvalidInput(f"num_classes must be at least 2, not {num_classes}")
    if schedule not in ("simultaneous", "sequential"):
        raise InvalidInput(f"schedule must be 'simultaneous' or 'sequential', not {schedule!r}")
    if readout not in ("last", "sum"):
        raise InvalidInput(f"readout must be 'last' or 'sum', not {readout!r}")
