"""Does squared loss lead to neural collapse from anywhere, and may the head be a fixed simplex? (arXiv:2203.01238).

Two parts. In the unconstrained feature model the claim is exact: from random starts, and from beside the saddle at 0, an
optimiser must end at the global minimum in closed form, whatever the decay of the bias. In trained networks features
must collapse further than they have after a few epochs, and a head that is fixed to a simplex, with as many features as
classes, must not cost accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assay.lab.arms import Arm, Call
from assay.lab.expectations import Expectation, below, equivalent, ratio
from assay.lab.experiment import Experiment
from assay.lab.study import Study
from assay.losses.rescaled_mse import rescaled_mse_loss
from assay.models.squared_loss_landscape import squared_loss_minimum
from assay.models.unconstrained_features import UnconstrainedFeatures
from assay.streams import Streams

__all__ = ["study", "unconstrained_features"]

NETWORK = "assay.papers.collapse_mse.network:SimplexHeadMLP"
NO_LOSS = 0.015  # of accuracy

# Decay of the bias (None: no bias) and size of the start; with decays 5e-3 the branches of the theorem meet at 0.05.
FREE_FEATURES = {
    "free-bias": (0.0, 1.0),
    "little-decayed-bias": (0.02, 1.0),
    "decayed-bias": (0.2, 1.0),
    "no-bias": (None, 1.0),
    "near-saddle": (0.0, 1e-4),
}


@dataclass(frozen=True)
class Setting:
    """What a scale decides: data, hidden units, the usual number of features, epochs and learning rates to try."""

    data: str
    hidden: int
    features: int
    epochs: int
    rates: tuple[float, ...]
    weight_decay: float = 1e-3


SETTINGS = {
    "smoke": Setting("digits(train=300, validation=100, test=300)", 32, 32, 12, ()),
    "desk": Setting("mnist(train=2000, validation=500, test=2000, pool=2)", 256, 256, 80, (0.03, 0.1, 0.3)),
    "paper": Setting("cifar10(train=45000, validation=5000, test=10000)", 2048, 512, 200, (0.01, 0.03, 0.1, 0.3), 5e-4),
}


def unconstrained_features(
    streams: Streams,
    num_classes: int,
    samples_per_class: int,
    features: int,
    decay: float,
    bias_decay: float | None,
    start: float,
) -> dict[str, float]:
    """Minimise squared loss over free features from a random start and compare the end with the closed form.

    Args:
        streams: "init" decides the start.
        num_classes: K.
        samples_per_class: n.
        features: d.
        decay: Of head and features alike, in units of the loss with factor 1/2 and no mean over classes.
        bias_decay: Of the bias, 0 for none; None for a head without a bias.
        start: Size of the start.

    Returns:
        "objective_gap", how far the objective is above its global minimum, and "score_deviation", the largest
        difference of a score, without the bias, from the predicted one.
    """
    model = UnconstrainedFeatures(
        num_classes, samples_per_class, features, bias_decay is not None, streams.torch("init"), start
    )
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=5000, tolerance_grad=1e-11, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def half_squared(scores: Tensor, targets: Tensor) -> Tensor:
        return num_classes / 2 * rescaled_mse_loss(scores, targets, target=1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        objective = model.objective(half_squared, decay, decay, bias_decay or 0.0)
        objective.backward()
        return objective

    optimizer.step(closure)
    expected = squared_loss_minimum(num_classes, samples_per_class, decay, decay, bias_decay)
    with torch.no_grad():
        scores = model.features @ model.head.weight.T
        deviation = (scores - expected.class_scores[model.targets]).abs().max().item()
    return {"objective_gap": closure().item() - expected.value, "score_deviation": deviation}


def _feature_arms() -> dict[str, Arm]:
    sizes = {"num_classes": 4, "samples_per_class": 6, "features": 7, "decay": 5e-3}
    return {
        f"features/{name}": Call(unconstrained_features, {**sizes, "bias_decay": bias_decay, "start": start})
        for name, (bias_decay, start) in FREE_FEATURES.items()
    }


def _network_arms(setting: Setting) -> dict[str, Arm]:
    def learned(features: int) -> str:
        return f"mlp(width=({setting.hidden}, {features}), batch_norm=True)"

    def fixed(features: int) -> str:
        return f"{NETWORK}(width=({setting.hidden}, {features}))"

    wide = Experiment(
        data=setting.data,
        model=learned(setting.features),
        loss="rescaled-mse(target=1.0)",
        optimizer=f"sgd(lr=0.1, momentum=0.9, weight_decay={setting.weight_decay})",
        schedule=f"multi-step(milestones={[round(setting.epochs * 3 / 7), round(setting.epochs * 5 / 7)]}, gamma=0.1)",
        probes=("neural-collapse(nc4=False)",),
        epochs=setting.epochs,
        batch_size=128,
        evaluate_every=max(1, setting.epochs // 10),
        tune={"optimizer.lr": setting.rates} if setting.rates else {},
    )
    narrow, simplex = wide.but(model=learned(10)), wide.but(model=fixed(10))
    brief = {"epochs": max(1, setting.epochs // 20), "evaluate_every": 1, "tune": {}}
    return {
        "learned/wide": wide,
        "learned/narrow": narrow,
        "simplex/wide": wide.but(model=fixed(setting.features)),
        "simplex/narrow": simplex,
        "learned/wide/brief": wide.but(**brief),
        "learned/narrow/brief": narrow.but(**brief),
        "simplex/narrow/brief": simplex.but(**brief),
    }


def _expectations() -> list[Expectation]:
    features = [f"features/{name}" for name in FREE_FEATURES]
    falls = [
        ratio("nc1", arm, f"{arm}/brief", below=0.5) for arm in ("learned/wide", "learned/narrow", "simplex/narrow")
    ]
    return [
        below("objective_gap", 1e-6, arms=features),
        below("score_deviation", 1e-3, arms=features),
        *falls,
        below("nc3", 0.1, arms=["learned/wide", "learned/narrow"]),
        equivalent("test_accuracy", within=NO_LOSS, arms=["simplex/narrow", "learned/narrow"]),
        equivalent("test_accuracy", within=NO_LOSS, arms=["simplex/narrow", "learned/wide"]),
    ]


def study(scale: str) -> Study:
    """Return the study at a scale: "smoke", "desk" or "paper"."""
    return Study(
        claim=(
            "With squared loss and weight decay, free features have no bad local minima: optimisation ends in neural "
            "collapse from any start. Networks go the same way in training, and a head fixed to a simplex, with as many "
            "features as classes, is as accurate as a trained one."
        ),
        arms={**_feature_arms(), **_network_arms(SETTINGS[scale])},
        expects=_expectations(),
        sources=SOURCES | (SOURCES_PAPER if scale == "paper" else {}),
        limits=LIMITS,
        seeds=2 if scale == "smoke" else 6,
    )


SOURCES = {
    "num_classes": "ours",
    "samples_per_class": "ours",
    "features": "ours: at least as many as classes, as the theorem asks",
    "decay": "ours: the theorem holds for any",
    "bias_decay": "ours: both branches of the theorem, a free bias and none",
    "start": "ours: standard normal, and beside the saddle at 0",
    "data": "scaled down because CIFAR-10 takes GPU days; classes are balanced to within sampling",
    "model": "scaled down because a ResNet-18 takes GPU days; fixed head: official code, options ETF_fc and fixdim",
    "loss": "the paper: mean squared error against one-hot targets",
    "optimizer": "official code: SGD with momentum 0.9",
    "optimizer.lr": "tuned per arm on validation data at desk and paper scale; 0.1, ours, in brief and smoke runs",
    "optimizer.weight_decay": "ours, 1e-3 instead of 5e-4: fewer updates must do",
    "schedule": "ours: x 0.1 at 3/7 and 5/7 of the epochs; official code: every 40 of 200 epochs",
    "epochs": "scaled down from 200; brief: a twentieth, ours",
    "batch_size": "official code, 128",
    "checkpoint": "ours: the last state, since collapse is a statement about the end of training",
    "evaluate_every": "ours",
    "rule": "the paper's: backpropagation",
    "probes": "the paper, section on metrics; measured on the training data",
    "tune": "ours: the same rates a factor of about 3 apart for every arm",
}
SOURCES_PAPER = {
    "data": "the paper: CIFAR-10, without its augmentation",
    "model": "replaced because Assay has no ResNet-18: a perceptron",
    "optimizer.weight_decay": "official code, 5e-4",
    "epochs": "official code, 200",
}
LIMITS = (
    "Ten classes of small digits and perceptrons with batch norm: nothing here speaks of ResNets, of the memory that a "
    "fixed head saves, of Adam and L-BFGS on networks, or of rescaling the loss for a hundred classes, which ten cannot "
    "separate. That the landscape has no bad local minima is shown by where optimisation ends, not by visiting all "
    "critical points. The margin of 1.5 points, the bound on NC3 and the decay were chosen on a prototype of which two seeds "
    "had been seen. Weight decay on parameters is not decay of features: networks follow the theorem by analogy. The fixed "
    "simplex with many features, most of them unread, is shown without an expectation. Each arm's "
    "learning rate is chosen by one seed's validation accuracy. With as many rectified features as classes a unit that dies early "
    "is lost for good where a fixed head reads each class from a unit of its own: seen on three seeds before the run, and left as it is."
)
