"""All learning rules beside tuned backpropagation: accuracy, time, memory and depth on MNIST and CIFAR-10.

Every rule trains the network it is defined on, of the same depth and width, on the same images for the same number of
passes, with the same number of candidate learning rates. Two controls: backpropagation tuned in the same way, with
momentum and with Adam, and a head trained on frozen random blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from assay.errors import InvalidInput
from assay.lab import Experiment, Study, greater

CLAIM = (
    "At equal tuning, backpropagation is more accurate than every rule that trains without a gradient through the whole "
    "network, on MNIST and CIFAR-10, at every depth; and rules that train block by block keep less for an update."
)


@dataclass(frozen=True)
class Method:
    """One rule and how it is tuned.

    Args:
        rule: Its name, as `assay.names` reads it.
        model: Its network by task, where it is not the common one; "{depth}" and "{width}" are filled in.
        optimizer: What steps it.
        rates: Candidate learning rates.
        phases: Into how many phases, given the depth, the rule divides the budget.
        tasks: The tasks on which it is defined; all if empty.
    """

    rule: str
    model: str | None = None
    optimizer: str = "adam"
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    tasks: tuple[str, ...] = ()
    other: Mapping[str, Any] = field(default_factory=dict)


ADAM = (5e-4, 1.5e-3, 5e-3, 1.5e-2)
SGD = (1e-2, 3e-2, 1e-1, 3e-1)
METHODS: Mapping[str, Method] = {
    "backprop-adam": Method("backprop", rates=ADAM),
    "backprop-sgd": Method("backprop", optimizer="sgd(momentum=0.9)", rates=SGD),
    "random-blocks": Method("cascaded-forward(features='random', readout='last')", rates=ADAM),
    "mono-forward": Method("mono-forward(schedule='simultaneous')", rates=ADAM),
}
REFERENCE = "backprop-adam"
DEPTHS = (1, 2, 4, 8)
TASKS = (*(f"mnist/depth-{depth}" for depth in DEPTHS), "cifar10/depth-2", "cifar10/cnn")


def study(scale: str) -> Study:
    """Return the study at a scale.

    Args:
        scale: "smoke", "desk" or "paper".

    Raises:
        InvalidInput: If there is no such scale.
    """
    raise InvalidInput(f"learning-rules has no scale {scale!r}")
