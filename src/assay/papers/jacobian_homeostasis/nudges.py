"""How the error of finite nudges falls with their radius and number, on one trained network (the paper's Table 1)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from assay.data.batching import batches
from assay.data.tabular import digits
from assay.models.relaxation_net import RelaxationNet
from assay.rules.equilibrium_propagation import EquilibriumPropagation
from assay.rules.fitting import fit
from assay.streams import Streams

__all__ = ["nudge_errors"]

SAMPLES = 50


def nudge_errors(
    streams: Streams,
    width: int,
    depth: int,
    gain: float,
    damping: float,
    epochs: int,
    lr: float,
    batch_size: int,
    steps: int,
    radii: list[float],
    points: list[int],
    large: float,
) -> dict[str, float]:
    """Train a network with symmetric initial weights, then compare responses to nudges with the exact one in float64.

    Args:
        streams: Of the trial.
        width: Neurons per hidden group.
        depth: Hidden groups.
        gain: Factor of the initial weights between groups.
        damping: Of the relaxation.
        epochs: Of training, with the exact response.
        lr: Adam's rate.
        batch_size: Samples per update.
        steps: Of every relaxation that is compared.
        radii: Two radii r, between which the order of the error is measured.
        points: Numbers N of nudges.
        large: Radius at which the gradients' cosine with the exact one is taken.

    Returns:
        "slope_<N>", the order of the error in r; "slope_gap", the largest |slope - N|; "cosine_<N>" of the weight
        gradients at the large radius; "residual" of the free phase.
    """
    data = digits(generator=streams.torch("data"))
    net = RelaxationNet(
        data.input_shape,
        data.outputs,
        width=width,
        depth=depth,
        gain=gain,
        damping=damping,
        feedback_angle=0.0,
        steps=30,
        generator=streams.torch("init"),
    )
    rule = EquilibriumPropagation(net, estimator="linear", steps=20)
    order = streams.torch("order")
    fit(rule, lambda: batches(data.train, batch_size, order), epochs, partial(torch.optim.Adam, lr=lr))
    net.double().steps = steps
    x, y = data.test.inputs[:SAMPLES].double(), data.test.targets[:SAMPLES]
    exact = _signals(net, x, y, points=0, beta=large, steps=steps)
    found: dict[str, float] = {"residual": float(net.relax(x, steps).residual)}
    for n in points:
        errors = [(_signals(net, x, y, points=n, beta=r, steps=steps) - exact).norm().item() for r in radii]
        found[f"slope_{n}"] = math.log(errors[1] / errors[0]) / math.log(radii[1] / radii[0])
        ours, reference = (_gradient(net, x, y, points=p, beta=large, steps=steps) for p in (n, 0))
        found[f"cosine_{n}"] = float(torch.cosine_similarity(ours, reference, dim=0))
    return found | {"slope_gap": max(abs(found[f"slope_{n}"] - n) for n in points)}


def _signals(net: RelaxationNet, x: Tensor, y: Tensor, *, points: int, beta: float, steps: int) -> Tensor:
    rule = EquilibriumPropagation(net, points=points, beta=beta, steps=steps)
    return torch.cat([ours for ours, _ in rule.error_signals(x, y).values()], 1)


def _gradient(net: RelaxationNet, x: Tensor, y: Tensor, *, points: int, beta: float, steps: int) -> Tensor:
    """Return the gradient of everything but the readout, which no nudge changes."""
    rule = EquilibriumPropagation(net, points=points, beta=beta, steps=steps)
    net.zero_grad(set_to_none=True)
    rule.backward(x, y)
    weights = (p.grad for name, p in net.named_parameters() if not name.startswith("readout"))
    return torch.cat([g.flatten() for g in weights if g is not None])
