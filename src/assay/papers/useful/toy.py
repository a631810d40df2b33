"""The two-feature problem of the theory behind USEFUL, and training on it (arXiv:2404.17768).

An example with label y = +-1 is P patches in R^d:

    beta_d y v_d             in every example (the slow feature)
    beta_e y v_e             in a share alpha of them (the fast one, beta_e > beta_d), noise in the others
    noise                    Gaussian and orthogonal to both, for what is left

    f(x) = sum_j sum_p <w_j, x^(p)>^3        J neurons, logistic loss, full batches

Shapes: patches (n, P, d), signs y (n,), weights (J, d), features [v_d, v_e] (2, d).
Departure: sizes are ours; the theorem wants a small share without the fast feature and small initial weights.
Cost: O(n P d J) per step, twice that with SAM.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.data.useful import useful_indices
from assay.lab.record import Record, Series
from assay.lab.resources import check_deadline
from assay.optim.sam import SAM
from assay.streams import Streams

__all__ = ["Toy", "descend", "outputs", "patches", "toy"]


@dataclass(frozen=True)
class Toy:
    """Examples of the problem: patches (n, P, d), signs (n,), whether each has the fast feature (n,), features (2, d)."""

    x: Tensor
    y: Tensor
    fast: Tensor
    features: Tensor


def patches(
    n: int, count: int, d: int, slow: float, fast: float, share: float, noise: float, generator: torch.Generator
) -> Toy:
    """Draw examples.

    Args:
        n: Examples.
        count: P, patches of each, at least 2.
        d: Dimensions of a patch, at least 3.
        slow: beta_d.
        fast: beta_e.
        share: alpha, the probability of the fast feature.
        noise: Standard deviation of a noise patch per dimension.
        generator: Draws everything.
    """
    features = torch.linalg.qr(torch.randn(d, 2, generator=generator, dtype=torch.float64)).Q.T
    y = 2.0 * torch.randint(2, (n,), generator=generator) - 1
    has_fast = torch.rand(n, generator=generator) < share
    x = noise * torch.randn(n, count, d, generator=generator, dtype=torch.float64)
    x = x - x @ features.T @ features
    signal = y.double()[:, None, None] * torch.stack([slow * features[0], fast * features[1]])
    x[:, 0] = signal[:, 0]
    x[:, 1] = torch.where(has_fast[:, None], signal[:, 1], x[:, 1])
    return Toy(x.float(), y, has_fast, features.float())


def outputs(weights: Tensor, x: Tensor) -> Tensor:
    """Return f(x) (n,) of weights (J, d) on patches (n, P, d)."""
    return (x @ weights.T).pow(3).sum(dim=(1, 2))


def descend(
    weights: Tensor, data: Toy, chosen: Tensor, lr: float, rho: float, steps: int, until: float = float("inf")
) -> tuple[Tensor, Tensor]:
    """Train by full-batch gradient descent, or SAM if `rho` is above 0.

    Args:
        weights: Initial weights (J, d).
        data: The examples.
        chosen: Indices of those to train on; one that comes twice counts twice.
        lr: Step size.
        rho: SAM's radius.
        steps: Most steps to take.
        until: Stop as soon as the fast feature has been learned so well.

    Returns:
        Final weights (J, d), and what was learned of the slow and the fast feature, max_j <w_j, v>, after 0, 1, 2 ...
        steps (at most steps + 1, 2).
    """
    w = weights.clone().requires_grad_()
    x, y = data.x[chosen], data.y[chosen]
    optimizer: torch.optim.Optimizer = torch.optim.SGD([w], lr=lr)
    if rho:
        optimizer = SAM(optimizer, rho)
    learned = [_learned(w, data.features)]
    while len(learned) <= steps and learned[-1][1] < until:
        optimizer.zero_grad()
        optimizer.step(partial(_loss_and_gradient, w, x, y))
        learned.append(_learned(w, data.features))
        check_deadline()
    return w.detach(), torch.stack(learned)


def _loss_and_gradient(w: Tensor, x: Tensor, y: Tensor) -> float:
    loss = F.softplus(-y * outputs(w, x)).mean()
    loss.backward()
    return float(loss.detach())


def _learned(w: Tensor, features: Tensor) -> Tensor:
    return (w.detach() @ features.T).amax(dim=0)


def toy(
    streams: Streams,
    *,
    n: int,
    patches_each: int,
    d: int,
    width: int,
    slow: float,
    fast: float,
    share: float,
    noise: float,
    init_std: float,
    lr: float,
    rho: float,
    steps: int,
    until: float,
    upsample: bool,
) -> Record:
    """Train on the toy and say what was learned of either feature, and when.

    Args:
        streams: "data" draws the examples, "init" the weights, "order" seeds 2-means.
        n: Examples.
        patches_each: P.
        d: Dimensions of a patch.
        width: J.
        slow: beta_d.
        fast: beta_e.
        share: alpha.
        noise: Standard deviation of the noise per dimension.
        init_std: Standard deviation of an initial weight.
        lr: Step size.
        rho: SAM's radius; 0 is gradient descent.
        steps: Steps of training.
        until: How well the fast feature is learned when early outputs are read and the optimizers are compared.
        upsample: Whether to train on the examples with USEFUL's second copies.

    Returns:
        `slow_when_fast_learned` at the first step with the fast feature at `until`, `slow_learned` and `fast_learned`
        at the end, `separation`: share of examples whose early cluster says rightly whether they have the fast feature.
    """
    data = patches(n, patches_each, d, slow, fast, share, noise, streams.torch("data"))
    start = init_std * torch.randn(width, d, generator=streams.torch("init"))
    chosen = torch.arange(n)
    early = partial(descend, start, data, chosen, lr)
    upsampled, separation = early_clusters(early(rho, steps, until)[0], data, streams.entropy("order") % 2**32)
    if upsample:
        chosen = torch.cat([chosen, upsampled])
    _, learned = descend(start, data, chosen, lr, rho, steps)
    reached = (learned[:, 1] >= until).nonzero()
    if not len(reached):
        raise FloatingPointError(f"the fast feature got to {learned[-1, 1]:.2f} in {steps} steps, not to {until}")
    when = int(reached[0])
    metrics = {
        "slow_when_fast_learned": learned[when, 0].item(),
        "step_of_fast": float(when),
        "slow_learned": learned[-1, 0].item(),
        "fast_learned": learned[-1, 1].item(),
        "separation": separation,
        "upsampled_share": len(upsampled) / n,
    }
    return Record(metrics=metrics, series=_curves(learned))


def early_clusters(weights: Tensor, data: Toy, seed: int) -> tuple[Tensor, float]:
    """Return USEFUL's examples, and the share of all that are among them exactly if they lack the fast feature."""
    scores = outputs(weights, data.x)
    labels = (data.y > 0).long()
    upsampled, halves = useful_indices(scores[:, None], F.softplus(-data.y * scores), labels, seed)
    return upsampled, ((halves == 1) != data.fast).double().mean().item()


def _curves(learned: Tensor, points: int = 100) -> dict[str, Series]:
    every = max(1, len(learned) // points)
    steps = tuple(float(step) for step in range(0, len(learned), every))
    return {
        f"{name} feature learned": Series(steps, tuple(learned[::every, k].tolist()), unit="step")
        for k, name in enumerate(("slow", "fast"))
    }
