"""How well the error signals that a learning rule assigns to neurons agree with the gradient's.

For a rule that offers `error_signals(x, y)`, by group its own and the exact ones, such as equilibrium propagation with
the fixed point's response to a nudge and recurrent backpropagation (Laborieux and Zenke, arXiv:2309.02214):

    error_alignment/<group>     mean over samples of the cosine between the two, over the group's neurons
    error_alignment             the same over all groups together

1 is the direction of the gradient, 0 a random one in many dimensions. Samples for which one of the two is 0 count as 0:
nothing is learned from them.

Shapes: a group's signals (B, ...).
Cost: the rule's own signals and the exact ones, no weight gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes.view import View

__all__ = ["ErrorAlignment", "error_alignment"]

NAME = "error_alignment"


def error_alignment(found: Tensor, exact: Tensor) -> Tensor:
    """Return the cosine between two signals (B, ...) of each sample, (B,); 0 where one of them is 0.

    Example:
        >>> error_alignment(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0]])).tolist()
        [1.0, 0.0]
    """
    a, b = (v.detach().flatten(1).double() for v in (found, exact))
    a, b = (v / v.abs().amax(1, keepdim=True).clamp(min=1e-300) for v in (a, b))  # so that squares do not underflow
    norms = a.norm(dim=1) * b.norm(dim=1)
    return (a * b).sum(1) / norms.where(norms > 0, 1.0)


class ErrorAlignment:
    """Cosine between a rule's error signals and the exact ones, by group.

    Args:
        most: Samples of the data that are measured at most.

    Raises:
        InvalidInput: If `most` is below 1.

    Example:
        >>> from assay.models.relaxation_net import RelaxationNet
        >>> from assay.rules.equilibrium_propagation import EquilibriumPropagation
        >>> rule = EquilibriumPropagation(RelaxationNet((4,), 3, width=8, feedback_angle=0), points=0)
        >>> data = (torch.ones(5, 4), torch.arange(5) % 3)
        >>> round(ErrorAlignment().measure(View(rule.model, rule=rule), [data])["error_alignment/l1"], 3)
        1.0
    """

    dear = True

    def __init__(self, most: int = 256) -> None:
        if most < 1:
            raise InvalidInput(f"most must be at least 1, not {most}")
        self.most = most
        self.skipped: dict[str, str] = {}

    def measure(self, view: View, batches: Iterable[Any]) -> dict[str, float]:
        """Return the alignments; NaN for a rule that offers no error signals.

        Args:
            view: The network and its rule.
            batches: Pairs (inputs, targets); the first `most` samples are used.
        """
        self.skipped = {}
        signals = getattr(view.rule, "error_signals", None)
        if signals is None:
            self.skipped[NAME] = "the network's rule offers no error signals per neuron"
            return {NAME: math.nan}
        totals: dict[str, float] = {}
        seen = 0
        for x, y in batches:
            x, y = x[: self.most - seen], y[: self.most - seen]
            for name, cosines in _by_group(signals(x, y)).items():
                totals[name] = totals.get(name, 0.0) + float(cosines.sum())
            seen += len(x)
            if seen >= self.most:
                break
        values = {name: total / seen for name, total in totals.items()}
        self.skipped |= {name: "the error signals are not finite" for name, v in values.items() if math.isnan(v)}
        return values


def _by_group(signals: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    whole = (torch.cat([pair[i].flatten(1) for pair in signals.values()], 1) for i in (0, 1))
    return {NAME: error_alignment(*whole)} | {f"{NAME}/{g}": error_alignment(*pair) for g, pair in signals.items()}
