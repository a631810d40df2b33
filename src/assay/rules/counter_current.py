"""Counter-current learning: a second network runs from the labels to the input, and layers match their counterparts.

Kao and Hariharan, arXiv:2409.19841, and their code. Forward layers F_1..F_n, feedback layers G_n..G_1 (`mirror`), every
input detached (sg), so that no gradient crosses a layer in either network:

    A_0 = x,  A_k = F_k(sg A_{k-1}),  A_n logits;      S_n = I_C,  S_{k-1} = G_k(sg S_k)
    L = loss(A_n, y) + lambda sum_{k<n} match(A_k, S_k)

    "prototype":  256 mean_ij((A_k S_k^T)_ij - [y_i = j])^2 / d_k                                   (the code's MLPs)
    "normalized": the same of cosines, with penalties within either network                     (its CNNs)
    "mse":        mean(A_k - S_k)^2, S_n the batch's own targets                                (its autoencoders)

Term k trains F_k and G_{k+1} only, the first one G_1, the loss F_n. Prediction is the forward network's.

Shapes: x (B, ...), A_k (B, *s_k), S_k (C, *s_k), with "mse" (B, *s_k); d_k the product of s_k.
Departures: for "mse" the output term is `loss`, unweighted. A gradient of F_k depends on the feedback layers beyond it,
so the rule is not `local` in the sense of `Rule`, though no gradient path is longer than one layer.
Cost: forward and feedback pass, one product per weight, no input gradients; what is kept at a time is one layer's
output and the C rows (for "mse" B) of all S_k; with `skip_above` all layers' outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.rules._loss_check import SAMPLES, check_loss
from assay.rules.activation_matching import normalized_match, prototype_match, squared_match
from assay.rules.mirrored_network import mirror
from assay.rules.rule import Rule
from assay.rules.splitting import blocks as find_blocks
from assay.rules.splitting import shape_of_input, trainable

__all__ = ["CounterCurrent"]

Match = Callable[[Tensor, Tensor, Tensor], Tensor]
# The function, and lambda of the code's configurations.
MATCHES: dict[str, tuple[Match, float]] = {
    "prototype": (prototype_match, 0.5),
    "normalized": (normalized_match, 1.0),
    "mse": (lambda a, s, y: squared_match(a, s), 1.0),
}


class CounterCurrent(Rule):
    """Two networks in opposite directions whose layers match each other.

    Args:
        model: An `nn.Sequential` of blocks and a linear output layer.
        num_classes: Number of classes C, at least 2; None where the targets are vectors (an autoencoder), with "mse".
        blocks: Names of the forward layers in order, the output layer last, where the model is no `nn.Sequential`.
        feedback: "mirror", or G_n..G_1 as an `nn.ModuleList` whose outputs have the shapes of A_{n-1}..A_0.
        match: "prototype", "normalized" or "mse".
        weight: lambda, 0 or more; None is the code's: 0.5 for "prototype", else 1.
        clip: Largest gradient norm of each of the two networks in `step`; None leaves gradients as they are.
        activation: Of the mirrored layers: "relu", "tanh", "elu" or "gelu".
        train_feedback: Whether the feedback network learns too, where it requires gradients, or stays as it was drawn.
        skip_above: Probability of the true class above which a sample's activations count as 0 (0.9 in the code's
            CNNs); None keeps all.
        loss: `loss(scores, targets) -> scalar` of the output layer; with classes, targets are int64 labels (B,).
        input_shape: Shape of one input, where neither the model nor its first layer tells.
        generator: Draws the mirrored layers' weights.

    Raises:
        InvalidInput: If the model has no linear output layer, no mirror, or feedback of other shapes; an option has no
            such value; or the loss can't be used.

    Example:
        >>> from assay.models.mlp import MLP
        >>> rule = CounterCurrent(MLP((4,), 3, width=8, depth=2, activation="elu"), num_classes=3)
        >>> sorted(rule.backward(torch.ones(2, 4), torch.tensor([0, 1])))
        ['loss', 'loss/block1', 'loss/block2', 'loss/head', 'loss/input']
    """

    needs = "blocks"

    def __init__(
        self,
        model: nn.Module,
        num_classes: int | None,
        blocks: Sequence[str] | None = None,
        feedback: str | nn.ModuleList = "mirror",
        match: str = "prototype",
        weight: float | None = None,
        clip: float | None = 1.0,
        activation: str = "elu",
        train_feedback: bool = True,
        skip_above: float | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        input_shape: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, generator)
        _check_options(num_classes, match, weight, clip, skip_above)
        self.names, self.layers = _forward_layers(model, blocks)
        self._check_output(num_classes, loss)
        self.num_classes, self.match, self.loss = num_classes, match, loss
        self.weight = MATCHES[match][1] if weight is None else weight
        self.clip, self.skip_above = clip, skip_above
        shape = shape_of_input(model, self.layers[0], input_shape)
        if isinstance(feedback, str):
            if feedback != "mirror":
                raise InvalidInput(f"feedback must be 'mirror' or an nn.ModuleList, not {feedback!r}")
            feedback = mirror(self.layers, shape, activation, self.generator)
        self.feedback = feedback if train_feedback else feedback.requires_grad_(False)
        self._check_feedback(shape)

    @property
    def output(self) -> nn.Linear:
        """The output layer F_n."""
        return cast(nn.Linear, self.layers[-1])

    def _check_output(self, num_classes: int | None, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        weight = self.output.weight
        if num_classes is None:
            zeros = weight.new_zeros(2, self.output.out_features)
            check_loss(loss, zeros, zeros)
        elif self.output.out_features != num_classes:
            raise InvalidInput(
                f"the output layer has {self.output.out_features} outputs; expected {num_classes}, one per class"
            )
        else:
            # More labels than classes: as many would broadcast in a loss of one-hot targets.
            labels = torch.arange(max(SAMPLES, 2 * num_classes), device=weight.device) % num_classes
            check_loss(loss, weight.new_zeros(len(labels), num_classes), labels)

    def _check_feedback(self, shape: tuple[int, ...]) -> None:
        """Refuse feedback whose signals do not fit the activations, by a run on zeros."""
        with self._inference():
            activations = list(self._activations(self.output.weight.new_zeros(2, *shape)))[:-1]
            try:
                signals = self._signals(torch.eye(self.output.out_features).to(self.output.weight))
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise InvalidInput(f"the feedback network does not run: {str(error).splitlines()[0]}") from error
        found, expected = ([tuple(t.shape[1:]) for t in ts] for ts in (signals, activations))
        if found != expected:
            raise InvalidInput(f"the feedback network gives signals of shapes {found}; expected {expected}")

    def _activations(self, x: Tensor) -> Iterator[Tensor]:
        """Yield A_0..A_n, each connected to its own layer's parameters alone."""
        a = x.detach()
        yield a
        for layer in self.layers:
            a = layer(a.flatten(1) if layer is self.output else a)
            yield a
            a = a.detach()

    def _signals(self, s: Tensor) -> list[Tensor]:
        """Return S_0..S_{n-1} from S_n, each connected to its own layer's parameters alone."""
        signals: list[Tensor] = []
        for layer in self.feedback:
            s = layer(s.detach())
            signals.insert(0, s)
        return signals

    def signals(self) -> dict[str, Tensor]:
        """Return the feedback network's signals for the classes, by the layer they are matched with.

        Returns:
            Layer name ("input" for the input itself) -> (C, *shape of the layer's output), without gradient.
        """
        with self._inference():
            found = self._signals(torch.eye(self.output.out_features).to(self.output.weight))
        return dict(zip(("input", *self.names), found, strict=False))

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add the gradients of both networks to `.grad`, layer by layer; see `Rule.backward`.

        With "mse" and without classes, y (B, ...) is what the output layer is to give, flattened.
        """
        targets = self._targets(y)
        classes = torch.eye(self.output.out_features, dtype=targets.dtype, device=targets.device)
        signals = self._signals(targets if self.match == "mse" else classes)
        activations: Iterable[Tensor] = self._activations(x)
        keep: Tensor | None = None
        if self.skip_above is not None:
            activations = list(activations)
            keep = (activations[-1].detach().softmax(1) * targets).sum(1) <= self.skip_above
        logs = {}
        for k, (name, a) in enumerate(zip(("input", *self.names), activations, strict=True)):
            if k < len(self.layers):
                seen = a if keep is None else a * keep.view(-1, *[1] * (a.ndim - 1))
                loss = self.weight * MATCHES[self.match][0](seen, signals[k], y)
            else:
                loss = self.loss(a, targets if self.num_classes is None else y)
            if loss.requires_grad or not torch.is_grad_enabled():
                loss.backward()
            logs[f"loss/{name}"] = loss.detach()
        return logs | {"loss": torch.stack(list(logs.values())).sum()}

    def _targets(self, y: Tensor) -> Tensor:
        """Return the targets as vectors (B, outputs)."""
        like = self.output.weight
        if self.num_classes is None:
            return y.flatten(1).to(like.dtype)
        if y.dtype != torch.int64 or y.ndim != 1:
            raise InvalidInput(f"expected int64 labels (B,), got {y.dtype} {tuple(y.shape)}")
        return F.one_hot(y, self.num_classes).to(like.dtype)

    def step(
        self, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, clip: float | None = None
    ) -> dict[str, Tensor]:
        """Do one whole update; each network's gradients are clipped, at the rule's norm unless `clip` is given.

        In a loop of your own, clip each of `groups()` between `backward` and the optimizer's step.
        """
        return super().step(x, y, optimizer, self.clip if clip is None else clip)

    def groups(self) -> list[list[nn.Parameter]]:
        """Return the forward network's parameters and the feedback network's."""
        return [group for group in (trainable(*self.layers), trainable(self.feedback)) if group]

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        found = dict(zip(("input", *self.names), self._activations(x), strict=True))
        hidden = {name: found[name] for name in self.names[:-1]}
        return hidden or {"input": found["input"]}

    def _scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)
        return scores

    def head(self) -> nn.Linear:
        """Return the output layer."""
        return self.output


def _forward_layers(model: nn.Module, names: Sequence[str] | None) -> tuple[list[str], list[nn.Module]]:
    """Return F_1..F_n and their names; the last one is linear."""
    found = find_blocks(model, names)
    layers, labels = list(found.modules), list(found.names)
    if found.head is not None:
        layers.append(found.head)
        labels.append("head")
    if not isinstance(layers[-1], nn.Linear):
        raise InvalidInput(f"the last layer must be an nn.Linear, not {type(layers[-1]).__name__}")
    return labels, layers


def _check_options(
    num_classes: int | None, match: str, weight: float | None, clip: float | None, skip_above: float | None
) -> None:
    if match not in MATCHES:
        raise InvalidInput(f"match must be one of {', '.join(MATCHES)}, not {match!r}")
    if num_classes is None and match != "mse":
        raise InvalidInput(f"match={match!r} needs class labels: give num_classes, or match='mse' for vectors")
    if num_classes is not None and num_classes < 2:
        raise InvalidInput(f"num_classes must be at least 2, not {num_classes}")
    if num_classes is None and skip_above is not None:
        raise InvalidInput("skip_above needs class labels: give num_classes, or leave it out")
    for name, value, least in (("weight", weight, 0.0), ("clip", clip, 1e-30), ("skip_above", skip_above, 0.0)):
        if value is not None and not value >= least:
            raise InvalidInput(f"{name} must be {'0 or more' if not least else 'above 0'}, not {value}")
