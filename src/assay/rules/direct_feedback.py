"""Direct random feedback: hidden layers get an error straight from the labels (DRTP) or from the output error (DFA).

Frenkel, Lefebvre and Bol, arXiv:1909.01311, and Nokland, arXiv:1609.01596. For hidden layers i with fixed random B_i
(C, *units) and one-hot y*, the gradient that arrives at layer i's output y_i = layer_i(sg(h_{i-1})) is

    DRTP: B_i^T y* / B            DFA: B_i^T e,   e = dloss/dscores (for cross-entropy (softmax - y*) / B)

and is taken through that layer alone; the output layer gets the ordinary gradient of the loss.

Shapes: scores and e (B, C); the gradient at y_i is (B, *units), the same at every step of a recurrent layer.
Departures: DRTP's projected label is divided by the B samples, as the mean loss is, where the code sums over the batch;
B_i ~ U(-1, 1) sqrt(6 / units) as in the code.
Cost: a forward pass and one product per weight, no input gradients. DRTP keeps one layer's input and output, whatever
the depth; DFA waits for the output error and keeps all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.rules._local_layers import LocalLayer, LocalNetwork
from assay.rules._loss_check import check_class_loss
from assay.rules.random_projections import fixed_projection, project
from assay.rules.rule import Rule

__all__ = ["DirectFeedbackAlignment", "DirectRandomTargetProjection"]


class _DirectFeedback(Rule):
    """What both rules share: the layers, the fixed matrices, prediction by the model itself."""

    needs = "blocks"

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        blocks: Sequence[str] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        input_shape: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, generator)
        self.network = LocalNetwork.of(model, num_classes, blocks, input_shape)
        like = self.network.head.weight
        check_class_loss(loss, num_classes, like)
        self.loss = loss
        for i, units in enumerate(self.network.units):
            matrix = fixed_projection(num_classes, units, "kaiming", generator=self.generator, like=like)
            self.register_buffer(f"feedback{i}", matrix)

    def _error(self, i: int, classes: Tensor, layer: LocalLayer, output: Tensor) -> Tensor:
        error = project(classes, self.get_buffer(f"feedback{i}"))
        return error.unsqueeze(1).expand_as(output) if layer.recurrent else error

    def groups(self) -> list[list[nn.Parameter]]:
        """Return one group per layer."""
        return self.network.groups()

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        return self.network.features(x)

    def _scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)
        return scores

    def head(self) -> nn.Linear:
        """Return the output layer."""
        return self.network.head


class DirectRandomTargetProjection(_DirectFeedback):
    """Hidden layers descend a fixed random projection of the label (DRTP).

    Args:
        model: An `nn.Sequential` of blocks and a linear output layer.
        num_classes: Number of classes C, at least 2.
        blocks: Names of the blocks in order, the output layer last, where the model is no `nn.Sequential`.
        loss: `loss(scores, targets) -> scalar` of the output layer.
        input_shape: Shape of one input, where neither the model nor its first layer tells.
        generator: Draws the projections.

    Raises:
        InvalidInput: If the model has no blocks or no linear output layer of C scores, or the loss can't be used.

    Example:
        >>> from assay.models.mlp import MLP
        >>> rule = DirectRandomTargetProjection(MLP((4,), 3, width=8), num_classes=3)
        >>> sorted(rule.backward(torch.ones(2, 4), torch.tensor([0, 1])))
        ['loss']
    """

    local = True

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add each layer's gradient to `.grad`, layer by layer; "loss" is the output layer's. See `Rule.backward`."""
        h = x.detach()
        for i, layer in enumerate(self.network.layers):
            output, pull = layer.run(h)
            pull(self._error(i, y, layer, output) / len(y))
            with torch.no_grad():
                h = layer.tail(output)
        loss = self.loss(self.network.head(h.flatten(1)), y)
        if loss.requires_grad or not torch.is_grad_enabled():
            loss.backward()
        return {"loss": loss.detach()}


class DirectFeedbackAlignment(_DirectFeedback):
    """Hidden layers get the output error through fixed random matrices (DFA).

    Args:
        model: An `nn.Sequential` of blocks and a linear output layer.
        num_classes: Number of classes C, at least 2.
        blocks: Names of the blocks in order, the output layer last, where the model is no `nn.Sequential`.
        loss: `loss(scores, targets) -> scalar`, whose gradient by the scores is the error.
        input_shape: Shape of one input, where neither the model nor its first layer tells.
        generator: Draws the matrices.

    Raises:
        InvalidInput: If the model has no blocks or no linear output layer of C scores, or the loss can't be used.

    Example:
        >>> from assay.models.mlp import MLP
        >>> rule = DirectFeedbackAlignment(MLP((4,), 3, width=8), num_classes=3)
        >>> sorted(rule.backward(torch.ones(2, 4), torch.tensor([0, 1])))
        ['loss']
    """

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add each layer's gradient to `.grad` once the output error is known; see `Rule.backward`."""
        h, waiting = x.detach(), []
        for layer in self.network.layers:
            output, pull = layer.run(h)
            waiting.append((layer, output, pull))
            with torch.no_grad():
                h = layer.tail(output.clone() if layer.tail_in_place else output)
        scores = self.network.head(h.flatten(1))
        output = scores.detach().requires_grad_().clone()  # no leaf: torch's FLOP counter can't hook leaves
        loss = self.loss(output, y)
        (e,) = torch.autograd.grad(loss, output)
        for i, (layer, output, pull) in enumerate(waiting):
            pull(self._error(i, e, layer, output))
        if scores.requires_grad:
            scores.backward(e)
        return {"loss": loss.detach()}
