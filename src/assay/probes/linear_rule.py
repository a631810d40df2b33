"""Linear agreement: does the network still decide as the linear classifier that one gradient step from 0 gives?

Xu, Wang, Frei, Vardi, Hu (2024, arXiv:2310.02541), analysis of the first step: after it f is close to the linear
function <sum_i y_i x_i, .>, which fits high-dimensional training data and knows nothing of an XOR. With K classes the
linear classifier is

    argmax_k <sum_{i: y_i = k} x_i, x>

the step of softmax regression from 0; what all classes have in common drops out, and K = 2 is the paper's.

Shapes: x (B, ...) flattened to (B, p), scores (B, K), targets (B,). Agreement is counted on held-out inputs, since both
may fit the training data. Cost: one forward pass over the data and one over the held-out data, K p numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._batches import Batches
from assay.probes.class_statistics import check_labels, class_sums
from assay.probes.view import View

__all__ = ["LinearAgreement", "linear_agreement"]


def linear_agreement(scores: Tensor, x_train: Tensor, y_train: Tensor, x: Tensor) -> float:
    """Return the share of inputs on which a network and the one-step linear classifier choose the same class.

    Args:
        scores: The network's scores (B, K) of `x`.
        x_train: Training inputs (n, ...).
        y_train: Their classes (n,), 0..K-1.
        x: Inputs (B, ...), preferably held out.

    Raises:
        InvalidInput: If the shapes, the types or the range of the labels are wrong.

    Example:
        >>> x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0])
        >>> linear_agreement(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), x, y, torch.tensor([[2.0], [-2.0]]))
        0.5
    """
    sums = _sums(x_train, y_train, scores.shape[1])
    return (_classify(sums, x) == scores.argmax(dim=1)).double().mean().item()


class LinearAgreement:
    """Agreement with the one-step linear classifier, and accuracy on the data seen and on held-out data.

    Args:
        held_out: Inputs and targets that training does not see, in any form that `assay.Watch` takes; inputs
            are cast to the type of those seen.
        batch_size: Held-out samples per forward pass where they are not in batches already.

    Example:
        >>> x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0])
        >>> view = View(torch.nn.Linear(1, 2, bias=False))
        >>> _ = torch.nn.init.constant_(view.model.weight, 0.0).data[1].fill_(1.0)
        >>> LinearAgreement((2 * x, y)).measure(view, [(x, y)])["linear_agreement"]
        1.0
    """

    def __init__(self, held_out: Any, batch_size: int = 512) -> None:
        self.held_out, self.batch_size = held_out, batch_size
        self.skipped: dict[str, str] = {}

    @torch.no_grad()
    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return shares in [0, 1]; NaN, with the reason in `skipped`, if a score is not finite.

        Args:
            view: The network.
            batches: Pairs of inputs and classes: what the network is trained on.

        Returns:
            "linear_agreement", "accuracy_seen", "accuracy_held_out" and "linear_accuracy_held_out".

        Raises:
            InvalidInput: If inputs are no float tensors, labels are no classes, or held-out inputs are of another size.
        """
        sums, seen, dtype = torch.zeros(()), _Shares(), torch.float32
        for x, y in batches:
            scores = view.scores(x)
            sums, dtype = sums.to(scores.device) + _sums(x, y, scores.shape[1]), x.dtype
            seen.add(_finite(scores), right=scores.argmax(dim=1) == y)
        linear_rule, held_out = _Shares(), _Shares()
        for x, y in Batches(self.held_out, self.batch_size, view):
            x = _flat(x).to(dtype).view_as(x)  # a network in float64 may be watched on held-out inputs in float32
            scores, linear = view.scores(x), _classify(sums, x)
            check_labels(scores, y, scores.shape[1])
            chosen = scores.argmax(dim=1)
            held_out.add(_finite(scores), right=chosen == y)
            linear_rule.add(_finite(scores) and _finite(sums), agree=chosen == linear, right=linear == y)
        values = {
            "linear_agreement": linear_rule.share("agree"),
            "accuracy_seen": seen.share("right"),
            "accuracy_held_out": held_out.share("right"),
            "linear_accuracy_held_out": linear_rule.share("right"),
        }
        self.skipped = {
            key: "the inputs or the scores contain NaN or infinity" for key in values if math.isnan(values[key])
        }
        return values


class _Shares:
    """Counts of samples by property, spoilt by numbers that are not finite."""

    def __init__(self) -> None:
        self.samples, self.finite, self.counts = 0, True, dict[str, int]()

    def add(self, finite: bool, *, right: Tensor, **properties: Tensor) -> None:
        self.samples += len(right)
        self.finite &= finite
        for name, found in {"right": right, **properties}.items():
            self.counts[name] = self.counts.get(name, 0) + int(found.sum())

    def share(self, name: str) -> float:
        return self.counts[name] / self.samples if self.finite else math.nan


def _finite(numbers: Tensor) -> bool:
    return bool(numbers.isfinite().all())


def _flat(x: Any) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InvalidInput(f"a linear classifier needs inputs that are float tensors, not {kind}")
    return x.flatten(1)


def _sums(x: Any, y: Tensor, num_classes: int) -> Tensor:
    inputs = _flat(x)
    check_labels(inputs, y, num_classes)
    return class_sums(inputs, y, num_classes)[0]


def _classify(sums: Tensor, x: Any) -> Tensor:
    inputs = _flat(x)
    if inputs.shape[1] != sums.shape[1]:
        raise InvalidInput(f"held-out inputs have {inputs.shape[1]} features, those seen {sums.shape[1]}; expected one")
    return (inputs @ sums.T.to(inputs.dtype)).argmax(dim=1)
