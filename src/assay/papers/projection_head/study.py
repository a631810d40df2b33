"""Is the layer below a projection head the better one to keep, and is it so because it weighs features less unequally?

Paper: arXiv:2403.11391. Two parts. In linear networks under the spectral contrastive loss the claim is exact: gradient
descent must end where the closed form has it, each layer weighing features more unequally than the one below. In
trained networks the labels are coarse (odd or even) and the task that follows is fine (which digit): a linear probe
reads features before and after heads of several kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data.batching import batches
from assay.data.dataset import Dataset, Split
from assay.lab.arms import Arm, Call
from assay.lab.expectations import Expectation, above, below
from assay.lab.quantities import at, difference
from assay.lab.study import Study
from assay.losses.supervised_contrastive import SupervisedContrastiveLoss
from assay.models.linear_contrastive import LinearContrastive, contrastive_minimum
from assay.models.mlp import MLP
from assay.names import resolve
from assay.nn.projection_heads import WithProjectionHead, projection_head
from assay.probes.feature_weighting import effective_rank
from assay.probes.linear_probe import fit_linear_probe
from assay.streams import Streams

__all__ = ["linear_network", "pretrain", "study"]

WORTHWHILE = 0.02  # of accuracy


@dataclass(frozen=True)
class Setting:
    """What a scale decides: data, coarse label of each class, epochs, steps of the linear networks, and the probes."""

    data: str
    epochs: int
    steps: int
    coarse: tuple[int, ...] = (0, 1) * 5
    probe_samples: int = 500
    probe_decays: tuple[float, ...] = (1e-6, 1e-4, 1e-2, 1.0)


SETTINGS = {
    "smoke": Setting(
        "digits(train=300, validation=100, test=300)", epochs=3, steps=300, probe_samples=150, probe_decays=(1e-2, 1.0)
    ),
    "desk": Setting("mnist(train=2000, validation=500, test=2000, pool=2)", epochs=30, steps=6000),
    "paper": Setting(
        "cifar10(train=45000, validation=5000, test=10000)",
        epochs=200,
        steps=100_000,
        coarse=(0, 0, 1, 1, 1, 1, 1, 1, 0, 0),  # vehicles and animals
        probe_samples=5000,
    ),
}


def linear_network(
    streams: Streams, features: int, width: int, depth: int, decay: float, start: float, rate: float, steps: int
) -> dict[str, float]:
    """Train a linear network on the population's loss by gradient descent and compare the end with the closed form.

    Args:
        streams: "data" draws the features' sizes (0.5 to 1.2) and noise (0.05 to 0.3), "init" the initial weights.
        features: d.
        width: Of all layers.
        depth: L.
        decay: alpha.
        start: Standard deviation of the initial weights.
        rate: Learning rate, in units of 1 / max(S)^2.
        steps: Of gradient descent.

    Returns:
        "post_error", the output's largest relative deviation from the closed form; "limit_error", from its limit without
        decay; "pre_error", of a lower layer's weights from the power l / L of the output's; and "inequality_post"
        and "inequality_pre", log of the largest over the smallest weight, of the output and the layer below it.
    """
    uniform = torch.rand(2, features, generator=streams.torch("data"), dtype=torch.float64)
    signal, noise = (0.5 + 0.7 * uniform[0]).square(), (0.05 + 0.25 * uniform[1]).square()
    model = LinearContrastive(features, width, depth=depth, scale=start, generator=streams.torch("init"))
    M, S = torch.diag(signal), torch.diag(signal + noise)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate / S.max().item() ** 2)
    for _ in range(steps):
        optimizer.zero_grad()
        model.objective(M, S, decay).backward()
        optimizer.step()
    weights = model.feature_weights()
    if not weights.isfinite().all():
        raise FloatingPointError("gradient descent diverged")
    post = weights[-1]
    powers = torch.arange(1, depth, dtype=torch.float64)[:, None] / depth
    expected, limit = (contrastive_minimum(signal, noise, a, depth).weights[-1] for a in (decay, 0.0))
    return {
        "post_error": _relative(post, expected),
        "limit_error": _relative(post, limit),
        "pre_error": _relative(weights[:-1], post**powers),
        "inequality_pre": _inequality(weights[-2]),
        "inequality_post": _inequality(post),
    }


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs() / expected).max().item()


def _inequality(weights: Tensor) -> float:
    return (weights.max() / weights.min()).log().item()


def pretrain(
    streams: Streams,
    data: str,
    coarse: Sequence[int],
    loss: str,
    head: str,
    kappa: float,
    temperature: float,
    widths: Sequence[int],
    rate: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    epochs: int,
    probe_samples: int,
    probe_decays: Sequence[float],
) -> dict[str, float]:
    """Train an encoder with a head on coarse labels, then read coarse and fine labels off both layers.

    Args:
        streams: "data", "init", "head" and "order".
        data: A loader of `assay.data`.
        coarse: Coarse label of each class.
        loss: "supervised-contrastive", "cross-entropy" (with a linear classifier on top) or "none": no training.
        head: A kind of `assay.nn.projection_head`.
        kappa: Of the fixed head.
        temperature: Of the contrastive loss.
        widths: Of the encoder's layers.
        rate: SGD's learning rate, falling along a cosine to 0.
        momentum: SGD's.
        weight_decay: SGD's.
        batch_size: Samples per mini-batch.
        epochs: Passes over the training data.
        probe_samples: Training images whose labels the probes are fitted to.
        probe_decays: Tried for each probe; validation accuracy chooses.

    Returns:
        Test accuracy of probes, "fine_pre", "fine_post", "coarse_pre" and "coarse_post"; "rank_pre" and "rank_post", the
        effective ranks of test features; and the decays chosen for the fine ones.
    """
    dataset = resolve("data", data)(generator=streams.torch("data"))
    map_ = torch.tensor(coarse)
    encoder = MLP(dataset.input_shape, len(set(coarse)), width=tuple(widths), generator=streams.torch("init"))[:-1]
    top = projection_head(head, widths[-1], kappa=kappa, generator=streams.torch("head"))
    model = WithProjectionHead(encoder, top)
    if loss != "none":
        criterion = _criterion(loss, temperature, widths[-1], len(set(coarse)))
        parameters = [*model.parameters(), *criterion.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        order = streams.torch("order")
        for _ in range(epochs):
            for x, y in batches(dataset.train, batch_size, order):
                optimizer.zero_grad()
                value = criterion(model(x), map_[y])
                if not value.isfinite():
                    raise FloatingPointError("the loss is not finite")
                value.backward()
                optimizer.step()
            schedule.step()
    return _read_off(model, dataset, map_, probe_samples, probe_decays)


class _ClassifiedCrossEntropy(nn.Module):
    """Cross-entropy of a linear classifier, which starts at 0, on features."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, features))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(features, self.weight, self.bias), targets)


def _criterion(loss: str, temperature: float, features: int, classes: int) -> nn.Module:
    if loss == "supervised-contrastive":
        return SupervisedContrastiveLoss(temperature)
    return _ClassifiedCrossEntropy(features, classes)


@torch.no_grad()
def _read_off(
    model: WithProjectionHead, dataset: Dataset, coarse: Tensor, probe_samples: int, decays: Sequence[float]
) -> dict[str, float]:
    fit = Split(dataset.train.inputs[:probe_samples], dataset.train.targets[:probe_samples])
    splits = (fit, dataset.validation, dataset.test)
    layers: dict[str, Callable[[Tensor], Tensor]] = {"pre": model.features, "post": model}
    values = {}
    for layer, features_of in layers.items():
        features = [features_of(split.inputs) for split in splits]
        values[f"rank_{layer}"] = effective_rank(features[-1])
        fine = _probe_accuracy(features, [split.targets for split in splits], decays)
        values[f"fine_{layer}"], values[f"decay_{layer}"] = fine
        values[f"coarse_{layer}"], _ = _probe_accuracy(features, [coarse[split.targets] for split in splits], decays)
    return values


def _probe_accuracy(
    features: Sequence[Tensor], targets: Sequence[Tensor], decays: Sequence[float]
) -> tuple[float, float]:
    """Return the test accuracy of the probe that does best on validation data, and its decay."""
    classes = int(torch.cat(list(targets)).max()) + 1
    readouts = {decay: fit_linear_probe(features[0], targets[0], decay, classes) for decay in decays}
    best = max(decays, key=lambda decay: readouts[decay].accuracy(features[1], targets[1]))
    return readouts[best].accuracy(features[2], targets[2]), best


def _arms(setting: Setting) -> dict[str, Arm]:
    linear = {"features": 6, "width": 8, "start": 0.3, "rate": 0.05, "steps": setting.steps}
    network = {
        "data": setting.data,
        "coarse": setting.coarse,
        "kappa": 1.05,
        "temperature": 0.2,
        "widths": (256, 128),
        "rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-3,
        "batch_size": 250,
        "epochs": setting.epochs,
        "probe_samples": setting.probe_samples,
        "probe_decays": setting.probe_decays,
    }
    heads = {"supervised-contrastive": ("none", "linear", "mlp", "fixed"), "cross-entropy": ("none", "mlp")}
    return {
        "linear/weak decay": Call(linear_network, {**linear, "depth": 2, "decay": 1e-3}),
        "linear/decay": Call(linear_network, {**linear, "depth": 2, "decay": 1e-2}),
        "untrained": Call(pretrain, {**network, "loss": "none", "head": "none"}),
        **{
            f"{loss}/{head}": Call(pretrain, {**network, "loss": loss, "head": head})
            for loss, kinds in heads.items()
            for head in kinds
        },
    }


def _expectations() -> list[Expectation]:
    contrastive = "supervised-contrastive"
    linear = ["linear/weak decay", "linear/decay"]

    def gain(better: str, arm: str, worse: str, other: str) -> Expectation:
        return above(difference(at(better, f"{contrastive}/{arm}"), at(worse, f"{contrastive}/{other}")), WORTHWHILE)

    return [
        below("post_error", 0.02, arms=linear),
        below("limit_error", 0.02, arms=["linear/weak decay"]),
        below("pre_error", 0.02, arms=["linear/decay"]),
        below(difference("inequality_pre", "inequality_post"), 0.0, arms=linear),
        gain("fine_pre", "mlp", "fine_post", "mlp"),
        gain("fine_pre", "mlp", "fine_pre", "none"),
        gain("fine_pre", "fixed", "fine_pre", "none"),
        above(difference(at("fine_pre", "cross-entropy/mlp"), at("fine_post", "cross-entropy/mlp")), WORTHWHILE),
    ]


def study(scale: str) -> Study:
    """Return the study at a scale: "smoke", "desk" or "paper"."""
    return Study(
        claim=(
            "Each layer of a linear network under the spectral contrastive loss weighs features more unequally than the "
            "layer below. Where pre-training sees coarse labels and the task has finer ones, features below a projection "
            "head are better than those above it and than those trained without a head; a fixed reweighting does too."
        ),
        arms=_arms(SETTINGS[scale]),
        expects=_expectations(),
        sources=SOURCES | (SOURCES_PAPER if scale == "paper" else {}),
        limits=LIMITS,
        seeds=2 if scale == "smoke" else 6,
    )


SOURCES = {
    "features": "ours",
    "width": "ours: at least as many as features",
    "depth": "the paper: an encoder and a head",
    "decay": "ours: weak enough for the paper's limit without decay, and strong enough for layers to balance",
    "start": "ours: large enough that no feature is lost to the local minimum at 0",
    "rate": "ours: linear networks, small enough for the fourth-order loss; networks, from a prototype, one for all arms",
    "steps": "ours: several times the time in which the stronger decay balances the layers",
    "data": "scaled down because CIFAR-100 with 20 superclasses takes GPU hours: parity of digits, then digits",
    "coarse": "ours",
    "loss": "the paper: supervised contrastive and cross-entropy",
    "head": "the paper: none, linear, two-layer perceptron and fixed; all keep the width",
    "kappa": "ours: a factor of 490 from the first to the last of 128 features",
    "temperature": "ours",
    "widths": "scaled down because a ResNet takes GPU hours",
    "momentum": "ours",
    "weight_decay": "ours",
    "batch_size": "ours",
    "epochs": "scaled down because of the small network",
    "probe_samples": "ours",
    "probe_decays": "tuned on validation data for each layer of each arm: values a factor of 100 apart",
}
SOURCES_PAPER = {
    "data": "replaced because Assay has no CIFAR-100: CIFAR-10 without augmentation, vehicles and animals",
    "widths": "replaced because Assay has no ResNet-18: a perceptron",
    "epochs": "ours",
}
LIMITS = (
    "Two coarse classes of small digits and a perceptron: nothing here speaks of ImageNet's shifts, of spurious features "
    "(UrbanCars), or of self-supervised learning with augmented images. One learning rate and weight decay serve all arms; "
    "they come from a prototype on which two seeds of every arm had been seen, and so do temperature, kappa and the "
    "expectations' direction, while the margin of two points was set for all of them alike. The arm without a head is one "
    "linear or two layers shallower than those with trained heads; the fixed head is not deeper. The untrained encoder, the "
    "linear head, coarse labels and effective ranks are shown without an expectation. For coarse labels, on which the "
    "theory expects no harm from the layer above, the two layers can be compared in the records. After one seed of every arm had been seen, the probe's grid of decays was widened, since "
    "one arm had chosen its end, and the linear model's steps were cut; cross-entropy's probe still chooses an end of it."
)
