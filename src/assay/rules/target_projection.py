"""Target projection (tpSGD): every layer approaches a fixed random projection of the label, with forward passes alone.

Lomnitz, Daniels, Zhang and Piacentino, arXiv:2208.08503. For hidden layers i = 1..L with h_0 = x and one-hot y*:

    y_i = layer_i(sg(h_{i-1}));   t_i = squash(P_i y*);   J_i = l(y_i, t_i);   delta_i = -dJ_i/dy_i * sigma'(z_i)
    "mse": l = 1/2 |y - t|^2, delta = (t - y) * sigma'        "l1": l = |y - t|_1, delta = sign(t - y) * sigma'

and W_i follows delta_i^T h_{i-1}; the output layer follows the gradient of its own loss. A convolution's target covers
its feature map before pooling; a recurrent layer has the same target at every step, and the state before is a constant.

Shapes: x (B, ...), y_i and t_i (B, *units) or (B, T, *units), P_i (C, *units). J_i sums over units (positions, steps)
and averages over the B samples, so the size of an update does not depend on the batch's.
Departures: the paper's text was not at hand, only its abstract and a digest of its update. What these leave open is
chosen here: P_i ~ N(0, 1), squashed into the activation's range (tanh; no target below 0 for activations that have no
negative values); a normalisation belongs to the layer before it; recurrent layers may have targets at the last step
only; and both readings of "layer by layer" are offered: "sweep" updates all layers on each mini-batch, from outputs
before their update, "greedy" trains one after another.
Cost: a forward pass and one product per weight, no input gradients; nothing but one layer's input and output is kept,
whatever the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.rules._local_layers import LocalNetwork
from assay.rules._loss_check import check_class_loss, check_loss
from assay.rules.random_projections import fixed_projection, project
from assay.rules.rule import Rule

__all__ = ["TargetProjection"]

HEAD = "head"
LocalLoss = Callable[[Tensor, Tensor], Tensor]
# Distribution of P_i, and whether tanh follows.
PROJECTIONS = {
    "tanh": ("normal", True),
    "raw": ("normal", False),
    "sign": ("sign", False),
    "uniform": ("uniform", False),
}


def _squared(y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    difference = y - target
    return difference.square().sum() / (2 * len(y)), difference / len(y)


def _absolute(y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    difference = y - target
    return difference.abs().sum() / len(y), difference.sign() / len(y)


def _differentiated(y: Tensor, target: Tensor, loss: LocalLoss) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        output = y.detach().requires_grad_().clone()  # no leaf: torch's FLOP counter can't hook leaves
        value = loss(output, target)
        return value.detach(), torch.autograd.grad(value, output)[0]


CLOSED_FORMS = {"mse": _squared, "l1": _absolute}


class TargetProjection(Rule):
    """Local losses towards random projections of the label.

    Args:
        model: An `nn.Sequential` of blocks and a linear output layer.
        num_classes: Number of classes C, at least 2.
        blocks: Names of the blocks in order, the output layer last, where the model is no `nn.Sequential`.
        local_loss: "mse", "l1", or `local_loss(outputs, targets) -> scalar`, the mean over the batch of each layer's
            loss.
        projection: "tanh" (N(0, 1), then tanh), "raw" (N(0, 1)), "uniform" (U(-1, 1)) or "sign" (+-1).
        scale: Factor of the projection (before tanh), above 0.
        steps: Which states of a recurrent layer have a target, "all" or the "last".
        order: "sweep" updates all layers on every mini-batch; "greedy" trains layer after layer, the output layer
            last, one phase each.
        loss: `loss(scores, targets) -> scalar` of the output layer.
        input_shape: Shape of one input, where neither the model nor its first layer tells.
        generator: Draws the projections.

    Raises:
        InvalidInput: If the model has no blocks or no linear output layer of C scores, an option has no such value, or
            a loss can't be used.

    Example:
        >>> from assay.models.mlp import MLP
        >>> rule = TargetProjection(MLP((4,), 3, width=8), num_classes=3)
        >>> sorted(rule.backward(torch.ones(2, 4), torch.tensor([0, 1])))
        ['loss', 'loss/block1', 'loss/block2', 'loss/head']
    """

    local = True
    needs = "blocks"

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        blocks: Sequence[str] | None = None,
        local_loss: str | LocalLoss = "mse",
        projection: str = "tanh",
        scale: float = 1.0,
        steps: str = "all",
        order: str = "sweep",
        loss: LocalLoss = F.cross_entropy,
        input_shape: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, generator)
        _check_options(local_loss, projection, scale, steps, order)
        self.network = LocalNetwork.of(model, num_classes, blocks, input_shape)
        like = self.network.head.weight
        check_class_loss(loss, num_classes, like)
        self.loss, self.steps = loss, steps
        self.local_loss = _with_error(local_loss, like)
        distribution, squashed = PROJECTIONS[projection]
        for i, (layer, units) in enumerate(zip(self.network.layers, self.network.units, strict=True)):
            p = scale * fixed_projection(num_classes, units, distribution, generator=self.generator, like=like)
            p = p.tanh() if squashed else p
            self.register_buffer(f"target{i}", p.clamp(min=0) if layer.non_negative else p)
        if order == "greedy":
            self.phase_names = (*(layer.name for layer in self.network.layers), HEAD)

    def _trained(self) -> range:
        """Indices of what the current phase trains, the output layer's being the number of blocks."""
        whole = len(self.phase_names) == 1
        return range(len(self.network.layers) + 1) if whole else range(self._phase, self._phase + 1)

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add each trained layer's own gradient to `.grad`; see `Rule.backward`."""
        trained, logs = self._trained(), dict[str, Tensor]()
        h = x.detach()
        for i, layer in enumerate(self.network.layers[: trained.stop]):
            if i in trained:
                output, pull = layer.run(h)
                logs[f"loss/{layer.name}"], error = self._loss_and_error(i, y, output)
                pull(error)
            else:
                with torch.no_grad():
                    output = layer.core(h)
            with torch.no_grad():
                h = layer.tail(output)
        if len(self.network.layers) in trained:
            loss = self.loss(self.network.head(h.flatten(1)), y)
            if loss.requires_grad or not torch.is_grad_enabled():
                loss.backward()
            logs[f"loss/{HEAD}"] = loss.detach()
        return logs | {"loss": torch.stack(list(logs.values())).sum()}

    def _loss_and_error(self, i: int, y: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        targets = project(y, self.get_buffer(f"target{i}"))
        if not self.network.layers[i].recurrent:
            return self.local_loss(output, targets)
        if self.steps == "all":
            return self.local_loss(output, targets.unsqueeze(1).expand_as(output))
        loss, error = self.local_loss(output[:, -1], targets)
        return loss, F.pad(error.unsqueeze(1), (0, 0, output.shape[1] - 1, 0))

    def groups(self) -> list[list[nn.Parameter]]:
        """Return one group per trained layer."""
        groups = self.network.groups()
        return [groups[i] for i in self._trained()]

    def frozen(self) -> list[nn.Module]:
        """Return the blocks before the one that a greedy order trains."""
        done = self.network.layers[: self._trained().start]
        return [part for layer in done for part in (*layer.core, *layer.tail)]

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        return self.network.features(x)

    def _scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)
        return scores

    def head(self) -> nn.Linear:
        """Return the output layer."""
        return self.network.head


def _with_error(local_loss: str | LocalLoss, like: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the function that gives the local loss and its gradient by the outputs."""
    if isinstance(local_loss, str):
        return CLOSED_FORMS[local_loss]
    trial = like.new_full((2, 3), 0.5)
    check_loss(local_loss, trial, trial / 2)
    return partial(_differentiated, loss=local_loss)


def _check_options(local_loss: str | LocalLoss, projection: str, scale: float, steps: str, order: str) -> None:
    if isinstance(local_loss, str) and local_loss not in CLOSED_FORMS:
        raise InvalidInput(f"local_loss must be 'mse', 'l1' or a function of outputs and targets, not {local_loss!r}")
    if projection not in PROJECTIONS:
        raise InvalidInput(f"projection must be one of {', '.join(PROJECTIONS)}, not {projection!r}")
    if not scale > 0:
        raise InvalidInput(f"scale must be above 0, not {scale}")
    if steps not in ("all", "last"):
        raise InvalidInput(f"steps must be 'all' or 'last', not {steps!r}")
    if order not in ("sweep", "greedy"):
        raise InvalidInput(f"order must be 'sweep' or 'greedy', not {order!r}")
