"""Does width add only to the Hessian's bulk at zero, while the data decide its outliers? (arXiv:1706.04454).

Networks with one hidden layer, small enough that all eigenvalues of the exact Hessian can be had, are trained on few
classes of small digits; once with three widths on the same data, once with one width on three numbers of classes. A last
arm asks whether a solution found with the full batch and the one that small batches reach from it lie in one basin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.lab.arms import Arm, Call
from assay.lab.expectations import Expectation, below, monotone, ratio
from assay.lab.study import Study
from assay.models.mlp import MLP
from assay.names import resolve
from assay.probes.curvature_matrix import CurvatureMatrix
from assay.probes.eigenpairs import top_eigenpairs
from assay.probes.outlier_count import bulk_share, count_above, count_before_gap
from assay.streams import Streams

__all__ = ["connect_batch_sizes", "diagonalise_hessian", "study"]


@dataclass(frozen=True)
class Setting:
    """What a scale decides: data, samples, widths and numbers of classes (the middle ones are shared), epochs."""

    data: str
    samples: int
    widths: tuple[int, int, int]
    classes: tuple[int, int, int]
    epochs: int


SETTINGS = {
    "smoke": Setting("digits(train=1400, validation=100, test=200)", 100, (2, 4, 8), (2, 3, 5), 10),
    "desk": Setting("mnist(train=6000, validation=100, test=100, pool=4)", 500, (8, 16, 32), (2, 5, 10), 40),
    "paper": Setting("mnist(train=20000, validation=100, test=100, pool=2)", 1000, (5, 10, 20), (2, 5, 10), 100),
}


def diagonalise_hessian(
    streams: Streams,
    data: str,
    samples: int,
    classes: int,
    width: int,
    epochs: int,
    lr: float,
    momentum: float,
    batch_size: int,
) -> dict[str, float]:
    """Train a network with one hidden layer and diagonalise the exact Hessian of its training loss.

    Args:
        streams: "data" draws the images, "init" the weights, "order" the mini-batches.
        data: A name in `assay.data`.
        samples: Images for training.
        classes: The first so many of the data's classes.
        width: Hidden units.
        epochs: Of SGD.
        lr: Learning rate.
        momentum: Of SGD.
        batch_size: Images per update.

    Returns:
        "outliers", "bulk_share" and "gap" (`assay.probes.count_above` and its neighbours), "negative_edge" =
        |lambda_min| / lambda_max, "lambda_max", "lanczos_error" = |lambda_max by Lanczos / exactly - 1|, "parameters",
        "train_loss", "train_accuracy".
    """
    x, y = _digits(streams, data, samples, classes)
    model = MLP(tuple(x.shape[1:]), classes, width, 1, generator=streams.torch("init"))
    _train(model, x, y, streams.torch("order"), epochs, lr, momentum, batch_size)
    hessian = CurvatureMatrix(model, F.cross_entropy, (x, y), dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(hessian.dense())
    largest = eigenvalues[-1].item()
    by_lanczos = top_eigenpairs(CurvatureMatrix(model, F.cross_entropy, (x, y))).values[0].item()
    return {
        "outliers": float(count_above(eigenvalues)),
        "bulk_share": bulk_share(eigenvalues),
        "gap": float(count_before_gap(eigenvalues, 3 * classes)),
        "negative_edge": abs(eigenvalues[0].item()) / largest,
        "lambda_max": largest,
        "lanczos_error": abs(by_lanczos / largest - 1),
        "parameters": float(len(eigenvalues)),
        "train_loss": hessian.loss,
        "train_accuracy": _accuracy(model, x, y),
    }


def connect_batch_sizes(
    streams: Streams,
    data: str,
    samples: int,
    classes: int,
    width: int,
    epochs: int,
    lr: float,
    momentum: float,
    batch_size: int,
) -> dict[str, float]:
    """Train with the full batch, go on with small batches, and look at the loss on the straight line between the two.

    Args:
        streams: As in `diagonalise_hessian`, whose arguments these are.
        data: A name in `assay.data`.
        samples: Images for training.
        classes: The first so many of the data's classes.
        width: Hidden units.
        epochs: Of the small batches; the full batch takes as many updates as they do.
        lr: Learning rate of both.
        momentum: Of both.
        batch_size: Of the small batches.

    Returns:
        "barrier": the largest training loss on the line, above the larger of its ends; the same from the full-batch
        solution to one that small batches reach from the same initial weights, "barrier_to_independent"; the "distance"
        between the ends of the first line, and "train_loss" at its end.
    """
    x, y = _digits(streams, data, samples, classes)
    models = [MLP(tuple(x.shape[1:]), classes, width, 1, generator=streams.torch("init")) for _ in range(2)]
    updates = epochs * -(-samples // batch_size)
    _train(models[0], x, y, streams.torch("order"), updates, lr, momentum, samples)
    full = _flat(models[0])
    for model in models:
        _train(model, x, y, streams.torch("order"), epochs, lr, momentum, batch_size)
    continued, independent = (_flat(model) for model in models)
    return {
        "barrier": _barrier(models[0], full, continued, x, y),
        "barrier_to_independent": _barrier(models[0], full, independent, x, y),
        "distance": (continued - full).norm().item(),
        "train_loss": _loss_at(models[0], continued, x, y),
    }


def _digits(streams: Streams, data: str, samples: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = streams.torch("data")
    train = resolve("data", data)(generator=generator).train
    chosen = (train.targets < classes).nonzero()[:, 0]
    chosen = chosen[torch.randperm(len(chosen), generator=generator)[:samples]]
    return train.inputs[chosen], train.targets[chosen]


def _train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    epochs: int,
    lr: float,
    momentum: float,
    batch_size: int,
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            if not loss.isfinite():
                raise FloatingPointError("the training loss is not finite")
            loss.backward()
            optimizer.step()


def _flat(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@torch.no_grad()
def _loss_at(model: nn.Module, w: Tensor, x: Tensor, y: Tensor) -> float:
    nn.utils.vector_to_parameters(w, model.parameters())
    return F.cross_entropy(model(x), y).item()


def _barrier(model: nn.Module, start: Tensor, end: Tensor, x: Tensor, y: Tensor) -> float:
    line = [_loss_at(model, torch.lerp(start, end, t), x, y) for t in torch.linspace(0, 1, 25).tolist()]
    return max(line) - max(line[0], line[-1])


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (model(x).argmax(1) == y).double().mean().item()


def _arms(setting: Setting) -> dict[str, Arm]:
    shared = {"data": setting.data, "samples": setting.samples, "epochs": setting.epochs}
    shared |= {"lr": 0.05, "momentum": 0.9, "batch_size": 50}
    few, some, many = setting.classes
    width = setting.widths[1]
    arms: dict[str, Arm] = {
        f"width-{h}": Call(diagonalise_hessian, shared | {"width": h, "classes": some}) for h in setting.widths
    }
    arms |= {f"classes-{k}": Call(diagonalise_hessian, shared | {"width": width, "classes": k}) for k in (few, many)}
    return arms | {"basins": Call(connect_batch_sizes, shared | {"width": width, "classes": some})}


def _expectations(setting: Setting) -> list[Expectation]:
    widths = [f"width-{h}" for h in setting.widths]
    classes = [f"classes-{setting.classes[0]}", widths[1], f"classes-{setting.classes[2]}"]
    exact = [*widths, classes[0], classes[2]]
    return [
        ratio("outliers", widths[2], widths[0], above=0.75),
        ratio("outliers", widths[2], widths[0], below=1.33),
        monotone("bulk_share", widths),
        monotone("outliers", classes),
        monotone("bulk_share", classes, increasing=False),
        below("negative_edge", 0.05, arms=exact),
        below("lanczos_error", 1e-3, arms=exact),
        below("barrier", 0.05, arms=["basins"]),
    ]


def study(scale: str) -> Study:
    """Return the study at a scale: "smoke", "desk" or "paper"."""
    setting = SETTINGS[scale]
    return Study(
        claim=(
            "The Hessian of a trained over-parametrised network is a bulk at zero and a few large outliers: more "
            "parameters add to the bulk and leave the outliers, more classes add outliers; and solutions of small and of "
            "large batches lie in one basin."
        ),
        arms=_arms(setting),
        expects=_expectations(setting),
        sources=SOURCES,
        limits=LIMITS,
        seeds=2 if scale == "smoke" else 6,
    )


SOURCES = {
    "data": "the paper: MNIST, made small enough to diagonalise the Hessian; the size is ours",
    "samples": "ours; the paper uses about a thousand",
    "classes": "ours: the paper varies the number of clusters of Gaussian data, and of classes",
    "width": "ours: a factor of four in parameters, as many as can be diagonalised in seconds",
    "epochs": "ours: long enough for a training loss near zero at every width",
    "lr": "ours: plain SGD as in the paper, which does not state its rates for these networks",
    "momentum": "ours",
    "batch_size": "ours",
}
LIMITS = (
    "Fully connected networks of at most some thousand parameters on small digits: nothing here speaks of deep "
    "convolutional networks, of batch norm or of more data. Outliers are counted above a tenth of the largest eigenvalue "
    "and the bulk below a thousandth of it; the paper counts by eye, and the thresholds move with the largest eigenvalue, "
    "which training makes differ between arms. That outliers are as many as classes is not an expectation: the paper says "
    "so of the order of magnitude only, and the count before the widest gap (gap) is logged for whoever wants to compare. "
    "The thresholds were fixed after measurements on a similar setting (pixels not standardised); "
    "one trial per arm of this setting, with another seed, was seen before the study ran."
)
