"""Do groups of samples with opposing gradients carry the oscillations, and the sharpness, at the edge of stability?

Paper: arXiv:2311.04163. A small network learns images by full-batch gradient descent to the same loss with a step that
reaches the edge of stability and with one that stays below it. In a toy model the sharpness is known exactly.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.lab.arms import Arm, Call
from assay.lab.expectations import Expectation, above, below, less
from assay.lab.quantities import at, difference
from assay.lab.record import Record, Series
from assay.lab.resources import check_deadline
from assay.lab.study import Study
from assay.models.mlp import MLP
from assay.names import resolve
from assay.papers.opposing_signals.toy import toy
from assay.probes.curvature_matrix import CurvatureMatrix
from assay.probes.eigenpairs import top_eigenpairs
from assay.probes.leverage import sharpness_without
from assay.probes.opposing_signals import OpposingSignals, SampleGroup
from assay.streams import Streams
from assay.watch import Watch

__all__ = ["descend", "study"]

AFTERWARDS = 12  # steps for which the losses of the last groups are followed


def descend(
    streams: Streams,
    *,
    data: str,
    pool: int,
    width: int,
    lr: float,
    k: int,
    until: float,
    every: int,
    last: int,
    most: int,
) -> Record:
    """Descend in full batches to a given loss and look at the groups of the last measurements.

    Args:
        streams: "data" decides the images, "init" the weights, "noise" the random groups.
        data: A name in `assay.data`; its training split is used.
        pool: Side of the squares of pixels that the network sees as one.
        width: Units of both hidden layers.
        lr: Step size.
        k: Samples per group.
        until: Training loss at which to stop.
        every: Steps between measurements.
        last: Measurements that are averaged.
        most: Steps at which to stop at the latest.

    Returns:
        Averages over the last measurements: those of `OpposingSignals`, `opposition_random` of two random groups,
        `edge` (lr lambda_max / 2), `leverage` of the two groups and of as many random and high-loss samples; `steps`;
        series of all measurements and, after the end, of the last groups' losses; pictures of these groups.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    split = resolve("data", data)(generator=streams.torch("data")).train
    images, y = split.inputs, split.targets
    x = F.avg_pool2d(images, pool)
    x = (x - x.mean(dim=(0, 2, 3), keepdim=True)) / x.std(dim=(0, 2, 3), keepdim=True)
    model = MLP(tuple(x.shape[1:]), 10, width=[width, width], generator=streams.torch("init"))
    probe = OpposingSignals(k=k, lr=lr)
    watch = Watch(model, [probe], (x, y), batch_size=len(x))
    kept: deque[tuple[dict[str, float], Tensor, dict[str, Tensor]]] = deque(maxlen=last)
    for step in range(most):
        if step % every == 0:
            check_deadline()
            found, groups = watch.measure(step), _groups(probe)
            chosen = torch.cat([group.indices for group in groups])
            kept.append((found, chosen, {name: t.clone() for name, t in model.state_dict().items()}))
        if _step(model, x, y, lr) <= until:
            break
    metrics = {"steps": float(step + 1), "train_loss": _mean_loss(model, x, y)}
    afterwards = _followed(model, x, y, lr, groups)
    noise, measured = streams.torch("noise"), []
    for found, chosen, state in kept:
        model.load_state_dict(state)
        measured.append(found | _controls(model, x, y, chosen, lr, noise))
    metrics |= {name: sum(values[name] for values in measured) / len(measured) for name in measured[0]}
    pictures = {
        f"samples whose loss is {name}": tiles(images[group.indices])
        for name, group in zip(TITLES, groups, strict=True)
    }
    return Record(metrics=metrics, series=_curves(watch) | afterwards, pictures=pictures)


def _groups(probe: OpposingSignals) -> tuple[SampleGroup, SampleGroup]:
    if probe.up is None or probe.down is None:
        raise FloatingPointError(f"a step has no groups: {probe.skipped}")
    return probe.up, probe.down


def _step(model: nn.Module, x: Tensor, y: Tensor, lr: float) -> float:
    """Take a step of full-batch gradient descent and return the loss before it."""
    model.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}")
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(p.grad, alpha=lr)  # type: ignore[arg-type]
    return value


@torch.no_grad()
def _mean_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(F.cross_entropy(model(x), y))


def _controls(
    model: nn.Module, x: Tensor, y: Tensor, chosen: Tensor, lr: float, noise: torch.Generator
) -> dict[str, float]:
    """Return opposition of random groups, sharpness, and the leverage of three choices of as many samples."""

    def matrix(samples: Tensor) -> CurvatureMatrix:
        return CurvatureMatrix(model, F.cross_entropy, (x[samples], y[samples]))

    def gradient(samples: Tensor) -> Tensor:
        loss = F.cross_entropy(model(x[samples]), y[samples])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    with torch.no_grad():
        losses = F.cross_entropy(model(x), y, reduction="none")
    drawn = torch.randperm(len(x), generator=noise)[: len(chosen)]
    first, second = (gradient(half) for half in drawn.chunk(2))
    everything = matrix(torch.arange(len(x)))
    sharpness = top_eigenpairs(everything, max_steps=60).values[0].item()
    leverages = {"": chosen, "_random": drawn, "_highest_loss": losses.topk(len(chosen)).indices}
    return {
        "opposition_random": float(F.cosine_similarity(first, second, dim=0)),
        "sharpness": sharpness,
        "edge": lr * sharpness / 2,
        **{f"leverage{n}": sharpness_without(everything, matrix(s)) / sharpness for n, s in leverages.items()},
    }


def _curves(watch: Watch) -> dict[str, Series]:
    names = ("opposition", "oscillation", "concentration")
    steps = tuple(watch.history.steps)
    return {n: Series(steps, tuple(values[n] for values in watch.history.steps.values()), unit="step") for n in names}


def _followed(
    model: nn.Module, x: Tensor, y: Tensor, lr: float, groups: tuple[SampleGroup, SampleGroup]
) -> dict[str, Series]:
    """Return the losses of the two groups, and of all samples, over some steps more."""
    curves: dict[str, list[float]] = {}
    for _ in range(AFTERWARDS):
        for name, group in zip(TITLES, groups, strict=True):
            curves.setdefault(f"loss of the {name} group", []).append(
                _mean_loss(model, x[group.indices], y[group.indices])
            )
        curves.setdefault("loss of all", []).append(_step(model, x, y, lr))
    steps = tuple(map(float, range(AFTERWARDS)))
    return {name: Series(steps, tuple(values), unit="step after the end") for name, values in curves.items()}


def tiles(images: Tensor, columns: int = 6) -> np.ndarray:
    """Return images (k, 1 or 3, H, W) side by side as bytes, scaled by their own smallest and largest value.

    Returns:
        uint8 (rows H, columns W) or (rows H, columns W, 3), black where there is no image left.
    """
    low, high = images.min(), images.max()
    k, channels, height, width = images.shape
    rows = -(-k // columns)
    sheet = torch.zeros(rows * columns, channels, height, width)
    sheet[:k] = (images - low) / (high - low).clamp(min=1e-12)
    page = sheet.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    page = page.reshape(rows * height, columns * width, channels)
    return (255 * page).round().to(torch.uint8).squeeze(-1).numpy()


@dataclass(frozen=True)
class Setting:
    """What a scale decides about the trained network; the step sizes of the two arms come last."""

    data: str
    pool: int
    width: int
    k: int
    until: float
    every: int
    last: int
    most: int
    large: float
    small: float


SETTINGS = {
    "smoke": Setting("digits(train=200)", 2, 16, 4, 1.5, 10, 2, 60, 0.3, 0.1),
    "desk": Setting("cifar10(train=600, validation=10, test=10)", 4, 64, 12, 0.6, 10, 10, 5000, 0.1, 0.02),
    "paper": Setting("cifar10(train=5000, validation=10, test=10)", 1, 200, 20, 0.3, 20, 10, 50_000, 0.05, 0.01),
}
TITLES = ("rising", "falling")
LENGTHS = (1.0, 2.0, 4.0)


def _arms(setting: Setting, time: float) -> dict[str, Arm]:
    shared = asdict(setting)
    rates = {name: shared.pop(name) for name in ("large", "small")}
    toys = {"variance": 10.0, "features": 6, "width": 8, "scale": 0.01, "lr": 0.005, "time": time}
    return {
        **{name: Call(descend, {**shared, "lr": lr}) for name, lr in rates.items()},
        **{f"toy-{beta:g}": Call(toy, {"beta": beta, **toys}) for beta in LENGTHS},
    }


def _expectations() -> list[Expectation]:
    toys = [f"toy-{beta:g}" for beta in LENGTHS]

    def gap(first: str, second: str, arms: tuple[str, str]) -> Expectation:
        return below(difference(at(first, arms[0]), at(second, arms[1])), 0.0)

    return [
        below("oscillation", -0.5, arms=["large"]),
        less("oscillation", "large", "small", margin=0.5),
        less("opposition", "large", "small"),
        gap("opposition", "opposition_random", ("large", "large")),
        gap("leverage", "leverage_random", ("large", "large")),
        gap("leverage", "leverage_highest_loss", ("large", "large")),
        above("sharpness_ratio", 0.98, arms=toys),
        below("sharpness_ratio", 1.02, arms=toys),
        above("sharpness_rise", 1.0, arms=toys),
    ]


def study(scale: str) -> Study:
    """Return the study at a scale: "smoke", "desk" or "paper"."""
    return Study(
        claim=(
            "At the edge of stability the samples whose losses a step changes most form two groups with opposing gradients, "
            "whose losses rise and fall in turn; these few samples make the loss sharper than as many random or high-loss ones "
            "do. In a linear network, learning the useful features sharpens the direction of a useless opposing one."
        ),
        arms=_arms(SETTINGS[scale], 2.0 if scale == "smoke" else 20.0),
        expects=_expectations(),
        sources=SOURCES | (SOURCES_PAPER if scale == "paper" else {}),
        limits=LIMITS,
        seeds=2 if scale == "smoke" else 6,
        covers="the images, the initial weights and the random groups",
    )


SOURCES = {
    "data": "scaled down: 600 images of the paper's CIFAR-10",
    "pool": "scaled down to 8 x 8 pixels",
    "width": "scaled down from the paper's multi-layer perceptrons, ResNet-18 and VGG-11",
    "k": "ours: 2% of the samples in each group; the paper looks at a small number",
    "until": "ours: before losses are so small that nothing changes; both steps are compared at this loss",
    "every": "ours",
    "last": "ours",
    "most": "ours: a stop that is not meant to be reached",
    "lr": "ours: with the large step lr lambda_max / 2 comes near 1 before the end, with the small one it does not; toy: far "
    "below 2 / (v |beta|), to follow the gradient flow",
    "beta": "ours: the theorem's variable",
    "variance": "ours: the theorem holds for any large v",
    "features": "ours",
    "scale": "the theorem: small initial weights",
    "time": "ours: until the loss is small",
}
SOURCES_PAPER = {
    "data": "the paper: CIFAR-10, 5000 images of it",
    "pool": "the paper: 32 x 32 pixels",
    "width": "ours: a multi-layer perceptron, as one of the paper's networks",
}
LIMITS = (
    "A small multi-layer perceptron on 600 images of 8 x 8 pixels: nothing here speaks of large networks, of stochastic "
    "gradients, of text, of batch norm, or of Adam, whose part the paper explains by opposing signals too. Whether a group "
    "shows one thing, such as sky, is for the reader of the pictures to judge. Groups are selected by their change, which alone "
    "makes their gradients oppose: only the comparison with smaller steps at the same loss counts. Leverage, oscillation "
    "and opposition are our measures of what the paper shows in figures. Margins were set after prototypes of two seeds and a "
    "trial on another had been seen; step sizes were chosen so that one of them reaches the edge of stability. The toy "
    "model's initial scale was lowered to 0.01, as the theorem asks for small weights, after 0.1 had missed its margin. A "
    "second data set is not tested."
)
