"""Cascaded Forward: blocks that are random, or trained by feedback alignment, each with its own linear predictor.

Zhao et al., arXiv:2303.09728, as measured by Spyra, arXiv:2509.19063. For blocks l = 1..L with h_0 = x:

    h_l = block_l(sg(h_{l-1}));   predictor_l = Linear(flatten(h_l)), trained alone on the frozen block;
    prediction = argmax of the predictors' summed scores.

features="random" leaves the blocks as they are, in evaluation mode (so a fresh BatchNorm is the identity).
features="dfa" first trains them against a throw-away head U on the last block: with e = dCE/dscores,
the cotangent of h_l is reshape(e F_l) for l < L with fixed F_l ~ N(0, 1), rows scaled to norm 1; block L and U get
the ordinary gradient.

Shapes: h_l (B, ...) flattened to (B, d_l); e (B, C); F_l (C, d_l).
Departures: e is the gradient of the mean loss, (softmax - one-hot) / B, where the code omits 1 / B (Adam does not see
the difference), so that the true Jacobian in place of F_l gives backpropagation; each block runs once per update, where
the code runs it twice and so updates BatchNorm's statistics twice; early stopping is left to the training loop.
Cost: a predictor's update costs the forward pass up to its block and one linear layer.
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

__all__ = ["CascadedForward"]

DFA = "dfa"


class CascadedForward(Rule):
    """Sum of linear predictors on random or feedback-aligned blocks.

    Args:
        model: An `nn.Sequential` of blocks; a linear head at its end is not used.
        num_classes: Number of classes C, at least 2.
        blocks: Names of the blocks where the model is no `nn.Sequential`.
        features: "random" keeps the blocks' weights, "dfa" trains them in a first phase.
        readout: "sum" trains a predictor on every block, one phase each, and sums their scores; "last" has one on the
            last block only: with random features, the control "frozen random blocks and a trained head".
        loss: `loss(scores, targets) -> scalar` of the predictors and of the throw-away head.
        input_shape: Shape of one input, where neither the model nor its first layer tells.
        generator: Draws the predictors' weights and the feedback matrices.

    Raises:
        InvalidInput: If the model has no blocks, an option has no such value, or the loss can't be used.

    Example:
        >>> from assay.models.cnn import CNN
        >>> CascadedForward(CNN((1, 8, 8), 10), num_classes=10, features="dfa").phase_names
        ('dfa', 'block1', 'block2', 'block3')
    """

    needs = "blocks"

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        blocks: Sequence[str] | None = None,
        features: str = "random",
        readout: str = "sum",
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        input_shape: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, generator)
        if num_classes < 2:
            raise InvalidInput(f"num_classes must be at least 2, not {num_classes}")
        if features not in ("random", "dfa"):
            raise InvalidInput(f"features must be 'random' or 'dfa', not {features!r}")
        if readout not in ("sum", "last"):
            raise InvalidInput(f"readout must be 'sum' or 'last', not {readout!r}")
        self.blocks, self.loss = find_blocks(model, blocks), loss
        self.local = features == "random"
        widths = block_widths(self.blocks, model, input_shape)[1]
        self.first = 0 if readout == "sum" else len(widths) - 1
        self.phase_names = self.blocks.names[self.first :]
        like = next(model.parameters())
        check_class_loss(loss, num_classes, like)
        predictors = (linear(d, num_classes, generator=self.generator) for d in widths[self.first :])
        self.predictors = nn.ModuleList(predictors).to(like.device, like.dtype)
        if features == "dfa":
            self.phase_names = (DFA, *self.phase_names)
            self.top = linear(widths[-1], num_classes, generator=self.generator).to(like.device, like.dtype)
            for i, d in enumerate(widths[:-1]):
                feedback = F.normalize(torch.randn(num_classes, d, generator=self.generator), dim=1)
                self.register_buffer(f"feedback{i}", feedback.to(like.device, like.dtype))
        for module in self.frozen():
            module.eval()

    def _predictor(self) -> int:
        """Index of the predictor that the current phase trains."""
        return self.blocks.names.index(self.phase) - self.first

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add the current phase's gradient to `.grad`; see `Rule.backward`."""
        if self.phase == DFA:
            return self._feedback_alignment(x.detach(), y)
        i = self._predictor()
        with torch.no_grad():
            for block in self.blocks.modules[: self.first + i + 1]:
                x = block(x)
        loss = self.loss(self.predictors[i](x.flatten(1)), y)
        loss.backward()
        return {"loss": loss.detach(), f"loss/{self.phase}": loss.detach()}

    def _feedback_alignment(self, h: Tensor, y: Tensor) -> dict[str, Tensor]:
        outputs = []
        for block in self.blocks.modules:
            outputs.append(block(h))
            h = outputs[-1].detach()
        scores = self.top(outputs[-1].flatten(1))
        loss = self.loss(scores, y)
        (e,) = torch.autograd.grad(loss, scores)
        scores.backward(e)
        outputs.pop()
        while outputs:  # block by block, so that each one's graph and cotangent are gone before the next
            h = outputs.pop()
            if h.requires_grad:
                h.backward((e @ self.get_buffer(f"feedback{len(outputs)}")).view_as(h))
        return {"loss": loss.detach()}

    def groups(self) -> list[list[nn.Parameter]]:
        """Return one predictor, or while the features are trained one group per block, the last with its head."""
        if self.phase == DFA:
            *earlier, last = self.blocks.modules
            return [*(trainable(block) for block in earlier), trainable(last, self.top)]
        return [trainable(self.predictors[self._predictor()])]

    def frozen(self) -> list[nn.Module]:
        """Return the model, unless its features are trained."""
        return [] if self.phase == DFA else [self.model]

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        return self.blocks.outputs(x)

    def _scores(self, x: Tensor) -> Tensor:
        outputs = list(self._features(x).values())[self.first :]
        return torch.stack([p(h.flatten(1)) for p, h in zip(self.predictors, outputs, strict=True)]).sum(0)

    def head(self) -> nn.Linear | None:
        """Return the only predictor; None where prediction sums over several."""
        only = self.predictors[0]
        return only if len(self.predictors) == 1 and isinstance(only, nn.Linear) else None
