"""Equilibrium propagation in the setting of `assay.testing.rules`: its estimators, and a limit that is backprop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.models.relaxation_net import RelaxationCNN, RelaxationNet
from assay.rules.equilibrium_propagation import EquilibriumPropagation
from assay.testing._shared import seeded

__all__ = ["CASES"]


def _case(*shape: int, exact: bool = False, epochs: int = 10, **options: Any) -> Callable[[], object]:
    """A rule on a net of two groups; an exact one has autograd through the relaxation as its limit."""
    net_options = {k: options.pop(k) for k in ("feedback_angle", "readout", "width") if k in options}

    def make() -> object:
        from assay.testing.rules import RuleCase, two_blobs

        settings: dict[str, Any] = {"gain": 0.5, "damping": 0.8, "generator": seeded()} | net_options
        net: torch.nn.Module
        if len(shape) == 3:
            net = RelaxationCNN(shape, 2, channels=(2,), steps=10, **settings)
        else:
            settings = {"width": 8, "steps": 40 if exact else 12} | settings
            net = RelaxationNet(shape, 2, **settings)
        inputs, targets = two_blobs(*shape)
        if exact:
            net, inputs = net.double(), inputs.double()
        rule = EquilibriumPropagation(net, generator=seeded(2), **{"steps": 40 if exact else 14, **options})
        return RuleCase(rule, inputs, targets, epochs=epochs, limit=net if exact else None)

    return make


PLAIN: dict[str, Any] = {"loss": "mse", "readout": False}
CASES: dict[str, Callable[[], object]] = {
    "equilibrium-propagation": _case(16, **PLAIN),
    "equilibrium-propagation-complex": _case(16, points=4, beta=0.5, **PLAIN),
    "equilibrium-propagation-homeostasis": _case(16, points=0, homeostasis=0.1, epochs=6, **PLAIN),
    "equilibrium-propagation-symmetric": _case(16, exact=True, estimator="linear", feedback_angle=0.0, epochs=24),
    "equilibrium-propagation-head": _case(16, estimator="recurrent-backprop", trained="head", width=(32,), **PLAIN),
    "equilibrium-propagation-cnn": _case(1, 8, 8, points=1),
}
