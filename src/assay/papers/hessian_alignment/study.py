"""Does aligning the head's gradients and Hessians across domains keep a network from trusting colours? (arXiv:2308.11778).

Coloured MNIST: in both training domains colour predicts the label better than shape does, and in the test domain it is
turned around. Beside plain training, both ways to align Hessians and the penalties that they explain there are gradient
alignment alone and the same network on grey images, which is what could be reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data.dataset import Split
from assay.data.domains import DomainDataset
from assay.data.shifted_mnist import without_color
from assay.lab.arms import Arm
from assay.lab.expectations import Expectation, greater, less
from assay.lab.record import Record, Series
from assay.lab.resources import check_deadline
from assay.lab.study import Study
from assay.lab.tuned_call import TunedCall
from assay.models.mlp import MLP
from assay.names import resolve
from assay.probes.head_hessian import head_hessian_distances
from assay.streams import Streams

__all__ = ["study", "train", "validate"]


@dataclass(frozen=True)
class Setting:
    """What a scale decides."""

    data: str
    hidden: int
    lr: float
    steps: int
    anneal: int
    l2: float
    weights: tuple[float, ...] = (1e1, 1e2, 1e3, 1e4, 1e5)
    decays: tuple[float, ...] = (4e-4, 1.3e-3, 4e-3, 1.3e-2, 4e-2)


SETTINGS = {
    "smoke": Setting(
        "colored-mnist(train=400, validation=100, test=200)",
        hidden=16,
        lr=1e-3,
        steps=12,
        anneal=4,
        l2=4e-3,
        weights=(1e4,),
        decays=(4e-3,),
    ),
    "desk": Setting(
        "colored-mnist(train=4000, validation=1000, test=2000)", hidden=48, lr=1e-3, steps=250, anneal=90, l2=4e-3
    ),
    "paper": Setting(
        "colored-mnist(train=50000, validation=5000, test=5000)",
        hidden=390,
        lr=4.898536566546834e-4,
        steps=501,
        anneal=190,
        l2=1.10794568e-3,
        weights=(1e3, 1e4, 91257.18613, 1e6),
        decays=(1e-4, 1.10794568e-3, 4e-3, 1e-2),
    ),
}
_ALIGNED = "detach_reference=False, reduction='sum'"
PENALTIES = {
    "gradient": f"hessian-alignment-penalty(kind='hgp', alpha=0.0, {_ALIGNED})",
    "hgp": f"hessian-alignment-penalty(kind='hgp', {_ALIGNED})",
    "diagonal": f"hessian-alignment-penalty(kind='diagonal', {_ALIGNED})",
    "irm": "irm-penalty",
    "vrex": "vrex-penalty",
    "fishr": "fishr-penalty(reduction='sum')",
}


def train(streams: Streams, *, validation_only: bool = False, **arguments: Any) -> Record:
    """Train one network and measure it on the test domain.

    Args:
        streams: "data" decides the data; see `_fit` for the others.
        validation_only: Return `validate`'s result instead, as tuning must.
        **arguments: Those of `_fit`, and "data".

    Returns:
        Accuracies on training domains, test domain and the test's grey images, the smaller of the first two, and how far
        the head's gradients and Hessians of the training domains are apart.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    if validation_only:
        return Record(metrics=validate(streams, **arguments))
    data = _data(streams, arguments.pop("data"), arguments["grey"])
    model, series = _fit(streams, data, **arguments, watched=data.test)
    grey = Split(without_color(data.test.inputs), data.test.targets)
    if arguments["grey"]:
        grey = data.test
    metrics = {
        "train_accuracy": _accuracy(model, data.train),
        "validation_accuracy": _accuracy(model, data.validation),
        "test_accuracy": _accuracy(model, data.test),
        "grey_accuracy": _accuracy(model, grey),
    }
    metrics["worst_accuracy"] = min(metrics["train_accuracy"], metrics["test_accuracy"])
    body, head = _parts(model)
    with torch.no_grad():
        first, second = ((body(d.inputs), d.targets) for d in data.training_domains()[:2])
    return Record(metrics=metrics | head_hessian_distances(first, second, head), series=series)


def validate(streams: Streams, **arguments: Any) -> dict[str, float]:
    """Train one network and return its accuracy where colours say nothing; nothing of the test data is read."""
    data = _data(streams, arguments.pop("data"), arguments["grey"])
    model, _ = _fit(streams, data, **arguments)
    return {"validation_score": _accuracy(model, data.validation)}


def _data(streams: Streams, name: str, grey: bool) -> DomainDataset:
    data: DomainDataset = resolve("data", name)(generator=streams.torch("data"))
    if not grey:
        return data
    train, validation, test = (
        Split(without_color(s.inputs), s.targets) for s in (data.train, data.validation, data.test)
    )
    return replace(data, train=train, validation=validation, test=test)


def _network(data: DomainDataset, hidden: int, generator: torch.Generator) -> MLP:
    """Return the official script's network: one score, Xavier weights and zero biases."""
    model = MLP(data.input_shape, 1, width=hidden, depth=2, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    return model


def _parts(model: MLP) -> tuple[nn.Sequential, nn.Linear]:
    *body, head = model
    assert isinstance(head, nn.Linear)
    return nn.Sequential(*body), head


def _fit(
    streams: Streams,
    data: DomainDataset,
    *,
    penalty: str | None,
    weight: float,
    hidden: int,
    lr: float,
    steps: int,
    anneal: int,
    l2: float,
    grey: bool,
    watched: Split | None = None,
) -> tuple[MLP, dict[str, Series]]:
    """Train on full batches with Adam: mean loss + l2 |parameters|^2 + lambda penalty, all of it over lambda if above 1.

    Lambda is 1 until step `anneal` and `weight` from there on, as in the official script.
    """
    model = _network(data, hidden, streams.torch("init"))
    body, head = _parts(model)
    domains = data.training_domains()
    inputs, targets = torch.cat([d.inputs for d in domains]), [d.targets for d in domains]
    sizes = [len(y) for y in targets]
    criterion: Callable[..., Tensor] | None = None if penalty is None else resolve("losses", penalty)()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    points: dict[float, float] = {}
    for step in range(steps):
        features = body(inputs).split(sizes)
        scores = [head(z)[:, 0] for z in features]
        losses = [F.binary_cross_entropy_with_logits(s, y.float()) for s, y in zip(scores, targets, strict=True)]
        loss = torch.stack(losses).mean() + l2 * sum(p.square().sum() for p in model.parameters())
        if criterion is not None:
            factor = weight if step >= anneal else 1.0
            loss = (loss + factor * criterion(features, targets, head)) / max(factor, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        check_deadline()
        if watched is not None and (step + 1) % max(1, steps // 10) == 0:
            points[float(step + 1)] = _accuracy(model, watched)
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"the loss is {loss.item()}")
    return model, {"test_accuracy": Series(tuple(points), tuple(points.values()), unit="step")}


@torch.no_grad()
def _accuracy(model: nn.Module, split: Split) -> float:
    return ((model(split.inputs)[:, 0] > 0) == split.targets.bool()).double().mean().item()


def _arms(setting: Setting) -> dict[str, Arm]:
    common = {
        "data": setting.data,
        "hidden": setting.hidden,
        "lr": setting.lr,
        "steps": setting.steps,
        "anneal": setting.anneal,
        "l2": setting.l2,
        "weight": 1.0,
        "penalty": None,
        "grey": False,
    }
    plain = TunedCall(train, common, {"l2": setting.decays})
    arms: dict[str, Arm] = {"erm": plain, "grey": plain.but(grey=True)}
    for name, penalty in PENALTIES.items():
        arms[name] = TunedCall(train, common | {"penalty": penalty}, {"weight": setting.weights})
    return arms


def _expectations() -> list[Expectation]:
    return [
        greater("test_accuracy", "hgp", "erm", margin=0.2),
        greater("test_accuracy", "diagonal", "erm", margin=0.2),
        less("head_diagonal_distance", "diagonal", "erm"),
        *(greater("test_accuracy", "hgp", other, margin=-0.03) for other in ("irm", "fishr")),
    ]


def study(scale: str) -> Study:
    """Return the study at a scale: "smoke", "desk" or "paper"."""
    return Study(
        claim=(
            "On Coloured MNIST, where plain training follows a colour that turns around in the test domain, aligning the "
            "head's gradients and Hessians across the training domains (by Hessian-gradient products or by diagonals) is "
            "far better there, at least as good as IRM and Fishr."
        ),
        arms=_arms(SETTINGS[scale]),
        expects=_expectations(),
        sources=SOURCES | (SOURCES_PAPER if scale == "paper" else {}),
        limits=LIMITS,
        seeds=2 if scale == "smoke" else 6,
        tune_seeds=1,
        covers="the split of the data, the flips of labels and colours and the initial weights",
    )


SOURCES = {
    "data": (
        "scaled down from 50,000 images; flips as in the paper; validation with colours that say nothing (e = 0.5) is ours"
    ),
    "penalty": "official code, cmnist: alpha = beta = 1, references not detached, sum over domains; IRM and V-REx averaged",
    "weight": "tuned per penalty on validation images with colours that say nothing; official code 91257 for all",
    "hidden": "scaled down from 390: the full width memorises the flipped labels of so few images",
    "lr": "ours, twice the official code's, since there are half the steps",
    "steps": "scaled down from 501",
    "anneal": "scaled down from 190 with the steps",
    "l2": "ours, 4e-3 for penalties, between official 1.1e-3 and what plain training chooses; tuned where there is no penalty",
    "grey": "the official script's grey images, here as an arm",
    "tune": "ours: as many values for each arm; the weight of the penalty or, without one, of weight decay",
}
SOURCES_PAPER = {
    "data": "the paper: 25,000 images per domain; half of the 10,000 held-out images are for validation, ours",
    "hidden": "official code, cmnist",
    "lr": "official code, cmnist",
    "steps": "official code, cmnist",
    "anneal": "official code, cmnist",
    "l2": "official code, cmnist; tuned where there is no penalty",
}
LIMITS = (
    "Coloured MNIST at a twelfth of its size and a small network: nothing about photographs or DomainBed, where the paper's "
    "differences are about a point, and nothing about label shift. With a quarter of the labels flipped no honest test "
    "accuracy exceeds 0.75. Choosing by validation images whose colours say nothing uses knowledge of what is spurious, "
    "which no real training set has; all arms have it. Width, weight decay, steps and rate are shrunk from a prototype on twice "
    "the images, in which plain training failed and alignment helped; the margins were set knowing that and before any run "
    "of this study. Then nine trials of six arms (four weights of hgp) were looked at on the tuning seed; no desk setting "
    "was changed."
)
