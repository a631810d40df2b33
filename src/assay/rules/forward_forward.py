"""Forward-Forward: every layer learns to be active on images with their true label and quiet on those with a false one.

Hinton, arXiv:2212.13345, in the version measured by Spyra, arXiv:2509.19063. The label stands in the first C entries
of the flattened image; n(z) = z / (rms(z) + 1e-8) keeps a layer from passing its own goodness on. For layers l = 1..L:

    z_0 = n(x);  a_l = R(W_l z_{l-1} + b_l);  logit_l = sum_j a_lj^2 - threshold;  z_l = n(sg(a_l))
    loss_l = BCE(logit_l, true label?) + peer * mean_j (mean(r_l) - r_lj)^2;  r_l <- 0.9 sg(r_l) + 0.1 mean_b a_l

R is ReLU with identity gradient; the threshold is the width d_l; r_l follows the positive rows only. Since the gradient
of a^2 vanishes where a = 0, the identity gradient serves the peer term alone: it wakes units that are never active.

Shapes: x (B, ...), flattened to (B, d_0); both signs stacked to (2B, d_l); C classes; scores (B, C).
Departures: the softmax head that the code trains beside the layers is left out, as it takes no part in the reported
accuracy; the learning-rate schedule belongs to the training loop.
Cost: two rows per sample in training, no input gradients; prediction runs all layers but the first C times.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.rules._local_layers import leaves
from assay.rules.rule import Rule
from assay.rules.splitting import blocks, trainable

__all__ = ["ForwardForward", "embed_label", "forward_forward_init", "rms_normalise"]

EPSILON = 1e-8
MOMENTUM = 0.9


def rms_normalise(z: Tensor) -> Tensor:
    """Divide each row of z (..., d) by its root mean square.

    Example:
        >>> rms_normalise(torch.tensor([[3.0, 3.0]]))
        tensor([[1., 1.]])
    """
    return z / (z.square().mean(-1, keepdim=True).sqrt() + EPSILON)


def embed_label(flat: Tensor, label: Tensor) -> Tensor:
    """Return a copy of the samples in which the first C entries hold the label.

    Args:
        flat: Flattened inputs (B, d) with d > C.
        label: What to write, (B, C) or (C,); one-hot for a class.

    Example:
        >>> embed_label(torch.zeros(1, 4), torch.tensor([0.0, 1.0]))
        tensor([[0., 1., 0., 0.]])
    """
    embedded = flat.clone()
    embedded[:, : label.shape[-1]] = label
    return embedded


class _StraightThroughReLU(torch.autograd.Function):
    """ReLU whose gradient is the identity."""

    @staticmethod
    def forward(ctx: object, z: Tensor) -> Tensor:
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class ForwardForward(Rule):
    """Local contrast of goodness between true and false labels.

    Args:
        model: An `nn.Sequential` of Linear - ReLU blocks (with a flattening first, if any); a linear head at its end is
            not used.
        num_classes: Number of classes C, at least 2 and below the input's entries.
        threshold: Goodness that separates the two signs; "width" is each layer's number of units.
        straight_through: Whether ReLU passes gradients where it is inactive.
        peer: Weight of peer normalisation, 0 or more.
        skip_first: Whether the first layer's goodness is left out of prediction (never with a single layer).
        initialise: Whether the blocks' weights are drawn anew by `forward_forward_init`, as in the paper's code.
        generator: Draws the false labels and, with `initialise`, the weights.

    Raises:
        InvalidInput: If a block is anything but Linear - ReLU, the label does not fit into the input, or a number is
            out of its range.

    Example:
        >>> from assay.models.mlp import MLP
        >>> rule = ForwardForward(MLP((8,), 3, width=16), num_classes=3)
        >>> rule.predict(torch.ones(5, 8)).shape
        torch.Size([5, 3])
    """

    local = True
    label_sweep = True
    needs = "blocks"

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        threshold: float | str = "width",
        straight_through: bool = True,
        peer: float = 0.03,
        skip_first: bool = True,
        initialise: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, generator)
        found = blocks(model)
        self.names = found.names
        self.layers = [_linear_of(name, block) for name, block in zip(found.names, found.modules, strict=True)]
        entries = self.layers[0].in_features
        if not 2 <= num_classes < entries:
            raise InvalidInput(
                f"Forward-Forward writes the label into the first num_classes entries of the input: num_classes must "
                f"be at least 2 and below the input's {entries} entries, not {num_classes}"
            )
        if peer < 0 or not (threshold == "width" or isinstance(threshold, (int, float))):
            raise InvalidInput(f"need peer >= 0 and threshold a number or 'width'; got {peer=}, {threshold=}")
        if initialise:
            forward_forward_init(model, self.generator)
        self.num_classes, self.peer, self.skip_first = num_classes, peer, skip_first and len(self.layers) > 1
        self.thresholds = [float(layer.out_features if threshold == "width" else threshold) for layer in self.layers]
        self.activation = _StraightThroughReLU.apply if straight_through else F.relu
        for i, layer in enumerate(self.layers):
            self.register_buffer(f"peer_mean{i}", torch.full_like(layer.weight[:, 0].detach(), 0.5))

    def false_labels(self, y: Tensor) -> Tensor:
        """Draw for each label another one, uniformly."""
        device = self.generator.device
        offset = torch.randint(1, self.num_classes, y.shape, generator=self.generator, device=device)
        return (y + offset.to(y.device)) % self.num_classes

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add each layer's own gradient to `.grad` and update the mean activities; see `Rule.backward`."""
        flat = x.detach().flatten(1)
        self._check_batch(flat, y)
        labels = F.one_hot(torch.cat([y, self.false_labels(y)]), self.num_classes).to(flat.dtype)
        z = rms_normalise(embed_label(flat.repeat(2, 1), labels))
        logs: dict[str, Tensor] = {}
        losses = []
        for i, layer in enumerate(self.layers):
            a = self.activation(layer(z))
            positive, negative = (a.square().sum(-1) - self.thresholds[i]).chunk(2)
            loss = (F.softplus(-positive).mean() + F.softplus(negative).mean()) / 2
            if self.peer:
                loss = loss + self.peer * self._peer_loss(i, a[: len(y)])
            if loss.requires_grad or not torch.is_grad_enabled():
                loss.backward()
            logs[f"loss/{self.names[i]}"] = loss.detach()
            losses.append(loss.detach())
            z = rms_normalise(a.detach())
        logs["loss"] = torch.stack(losses).sum()
        return logs

    def _check_batch(self, flat: Tensor, y: Tensor) -> None:
        """Refuse labels that cannot be written into the input, before anything has moved."""
        if flat.shape[1] != self.layers[0].in_features:
            raise InvalidInput(f"expected inputs of {self.layers[0].in_features} entries, got {flat.shape[1]}")
        if y.ndim != 1 or y.is_floating_point():
            raise InvalidInput(
                f"Forward-Forward writes one class label per sample into the input: expected integer targets "
                f"({len(flat)},), got {tuple(y.shape)} of {y.dtype}"
            )
        if not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise InvalidInput(
                f"labels must be from 0 to num_classes - 1 = {self.num_classes - 1} to be written into the input; "
                f"got {int(y.min())} to {int(y.max())}"
            )

    def _peer_loss(self, i: int, positive: Tensor) -> Tensor:
        running = self.get_buffer(f"peer_mean{i}")
        updated = MOMENTUM * running + (1 - MOMENTUM) * positive.mean(0)
        running.copy_(updated.detach())
        return (updated - updated.mean()).square().mean()

    def groups(self) -> list[list[nn.Parameter]]:
        """Return one group per layer."""
        return [trainable(layer) for layer in self.layers]

    def _scores(self, x: Tensor) -> Tensor:
        """Return the goodness of every candidate label, summed over layers."""
        total: Tensor | float = 0.0
        h = self._first_layer(x.flatten(1))
        for i, following in enumerate([*self.layers[1:], None]):
            a = F.relu(h)
            if i > 0 or not self.skip_first:
                total = total + a.square().sum(-1)
            if following is not None:
                h = following(rms_normalise(a))
        assert isinstance(total, Tensor)
        return total.T

    def _first_layer(self, flat: Tensor) -> Tensor:
        """Return the first layer's pre-activations (C, B, d_1) under each label.

        All labels have the same norm, so the image's share of W n(x) is computed once, and a label adds one column.
        """
        classes, first = self.num_classes, self.layers[0]
        rest = embed_label(flat, flat.new_zeros(classes))
        scale = ((rest.square().sum(-1, keepdim=True) + 1) / flat.shape[1]).sqrt() + EPSILON
        h = (F.linear(rest, first.weight) + first.weight[:, :classes].T[:, None]) / scale
        return h if first.bias is None else h + first.bias

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        """Return the activities under the neutral label, 1/C for every class: what the image alone evokes."""
        flat = x.flatten(1)
        z = embed_label(flat, flat.new_full((self.num_classes,), 1 / self.num_classes))
        outputs = {}
        for name, layer in zip(self.names, self.layers, strict=True):
            outputs[name] = z = F.relu(layer(rms_normalise(z)))
        return outputs


def forward_forward_init(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the weights of a network's linear layers anew as the paper's code does: N(0, 1/d_out), biases 0.

    With inputs of unit root mean square this puts the first layer's goodness at d_0 / 2, near its threshold d_1.

    Args:
        model: Its blocks are re-initialised in place; its head stays.
        generator: Source of the weights; None is torch's global generator.
    """
    found = blocks(model)
    for name, block in zip(found.names, found.modules, strict=True):
        layer = _linear_of(name, block)
        nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.out_features), generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _linear_of(name: str, block: nn.Module) -> nn.Linear:
    parts = [m for m in leaves(block) if not isinstance(m, nn.Flatten)]
    if len(parts) == 2 and isinstance(parts[0], nn.Linear) and isinstance(parts[1], nn.ReLU):
        return parts[0]
    found = " - ".join(type(m).__name__ for m in parts)
    raise InvalidInput(
        f"Forward-Forward needs blocks of Linear - ReLU, but {name!r} is {found}; use an MLP without normalisation"
    )
