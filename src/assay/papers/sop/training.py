"""Training on wrong labels with any of the study's objectives, and the linear model in which recovery is exact.

One loop for all arms, so that they share split, noise, initial weights and order of mini-batches bit for bit; arms differ
in the criterion, in weight decay, and in whether the last or the best epoch (on noisy validation labels) counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from assay.data.batching import batches
from assay.data.dataset import Split
from assay.data.label_noise import NoisyDataset, noisy_labels
from assay.lab.record import Record, Series
from assay.lab.resources import check_deadline
from assay.losses.sop import SOPLoss
from assay.models.mlp import MLP
from assay.nn.sparse_noise import SparseNoise
from assay.probes.memorised_labels import label_memorisation
from assay.probes.noise_found import noise_detection
from assay.streams import Streams

__all__ = ["recover", "train"]


def _accuracy(model: nn.Module, split: Split) -> float:
    return (model(split.inputs).argmax(dim=1) == split.targets).double().mean().item()


class _Objective:
    """A criterion of (scores, targets, index) and the optimizer of its own parameters, if it has any."""

    def __init__(self, name: str, data: NoisyDataset, noise_lr: float, generator: torch.Generator) -> None:
        assert data.num_classes is not None
        self.sop: SOPLoss | None = None
        self.plain: nn.Module = nn.CrossEntropyLoss(label_smoothing=0.1 if name == "label-smoothing" else 0.0)
        self.optimizer: torch.optim.Optimizer | None = None
        if name in ("sop", "clamped"):
            self.sop = SOPLoss(len(data.train), data.num_classes, generator=generator)
        if self.sop is not None and name == "clamped":
            self.plain, self.sop = self.sop.eval(), None  # cross-entropy with SOP's floor under the probabilities
        elif self.sop is not None:
            # An optimizer of their own: the schedule is the network's.
            self.optimizer = torch.optim.SGD(self.sop.param_groups(noise_lr, noise_lr))

    def __call__(self, scores: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        loss: Tensor = self.plain(scores, targets) if self.sop is None else self.sop(scores, targets, index)
        return loss


def train(
    streams: Streams,
    objective: str,
    data: str,
    kind: str,
    rate: float,
    width: int,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    checkpoint: str = "last",
    noise_lr: float = 0.0,
    validation_only: bool = False,
) -> Record:
    """Train a network with two hidden layers on noisy labels.

    Args:
        streams: "data" draws split and noise, "init" the weights and noise variables, "order" the mini-batches.
        objective: "cross-entropy", "label-smoothing", "clamped" or "sop".
        data: A loader of `assay.data` by name.
        kind: Of the noise, drawn from all classes if symmetric.
        rate: Of the noise in training and validation labels.
        width: Units per hidden layer.
        epochs: Passes over the training set.
        batch_size: Samples per step.
        lr: The network's learning rate, which falls to 0 along a cosine.
        momentum: The network's.
        weight_decay: The network's.
        checkpoint: "last", or "best" for the epoch with the best accuracy on noisy validation labels.
        noise_lr: SOP's rate of u and v.
        validation_only: Leave the test split alone.
    """
    noisy = noisy_labels(data, kind, rate, others=False, generator=streams.torch("data"))
    init = streams.torch("init")
    model = MLP(noisy.input_shape, noisy.outputs, width, generator=init)
    criterion = _Objective(objective, noisy, noise_lr, init)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    history: dict[str, list[float]] = {}
    numbered = Split(noisy.train.inputs, torch.arange(len(noisy.train)))
    order = streams.torch("order")
    for _ in range(epochs):
        for x, index in batches(numbered, batch_size, order):
            _step(model, criterion, optimizer, x, noisy.train.targets[index], index)
        schedule.step()
        check_deadline()
        for name, value in _measured(model, noisy, validation_only):
            history.setdefault(name, []).append(value)
    return _record(history, criterion, noisy, checkpoint, validation_only)


def _step(
    model: nn.Module, criterion: _Objective, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, index: Tensor
) -> None:
    optimizers = [o for o in (optimizer, criterion.optimizer) if o is not None]
    for each in optimizers:
        each.zero_grad()
    criterion(model(x), y, index).backward()
    for each in optimizers:
        each.step()


@torch.no_grad()
def _measured(model: nn.Module, data: NoisyDataset, validation_only: bool) -> Iterator[tuple[str, float]]:
    yield "validation_accuracy", _accuracy(model, data.validation)
    if not validation_only:
        yield "test_accuracy", _accuracy(model, data.test)
        scores = model(data.train.inputs)
        if not bool(scores.isfinite().all()):
            raise FloatingPointError("the scores are not finite")
        yield from label_memorisation(scores, data.train.targets, data.clean).items()


def _record(
    history: dict[str, list[float]],
    criterion: _Objective,
    data: NoisyDataset,
    checkpoint: str,
    validation_only: bool,
) -> Record:
    validation = history["validation_accuracy"]
    chosen = validation.index(max(validation)) if checkpoint == "best" else len(validation) - 1
    metrics = {name: values[chosen] for name, values in history.items()}
    if validation_only:
        return Record(metrics=metrics | {"validation_score": metrics["validation_accuracy"]})
    metrics["epoch"] = float(chosen + 1)
    metrics["fall_from_peak"] = max(history["test_accuracy"]) - metrics["test_accuracy"]
    if criterion.sop is not None:
        metrics |= noise_detection(criterion.sop.flagged(), data.corrupted)
    series = {name: Series(tuple(range(1, len(v) + 1)), tuple(v)) for name, v in history.items()}
    return Record(metrics={k: v for k, v in metrics.items() if math.isfinite(v)}, series=series)


def recover(
    streams: Streams,
    noise: bool,
    samples: int,
    features: int,
    rank: int,
    wrong: int,
    steps: int,
    lr: float,
    ratio: float,
) -> dict[str, float]:
    """Fit a linear model of low rank to targets of which some have gross errors, with or without noise variables.

    Args:
        streams: "data" draws model, truth and errors, "init" the start of the noise variables.
        noise: Whether the model has them.
        samples: N.
        features: Columns of the design, at least `rank`.
        rank: Of the design; its singular values are 0.8 to 1.
        wrong: Targets with an error of 2 or -2.
        steps: Of full-batch gradient descent on half the squared distance.
        lr: For the model.
        ratio: Rate of the noise variables over the model's.

    Returns:
        "model_error" and "noise_error", relative to the truth.
    """
    generator = streams.torch("data")
    double = torch.float64
    left, right = (
        torch.linalg.qr(torch.randn(n, rank, generator=generator, dtype=double)).Q for n in (samples, features)
    )
    J = left * torch.linspace(1.0, 0.8, rank, dtype=double) @ right.T
    truth = right @ torch.randn(rank, generator=generator, dtype=double)
    errors = torch.zeros(samples, dtype=double)
    signs = torch.randint(2, (wrong,), generator=generator).to(double)
    errors[torch.randperm(samples, generator=generator)[:wrong]] = 4 * signs - 2
    y = J @ truth + errors
    theta = torch.zeros(features, dtype=double, requires_grad=True)
    s = SparseNoise(samples, generator=streams.torch("init")).double()
    groups = [{"params": [theta]}, *(s.param_groups(ratio * lr) if noise else [])]
    optimizer = torch.optim.SGD(groups, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (J @ theta + s().squeeze(1) - y).square().sum()).backward()
        optimizer.step()
    with torch.no_grad():
        missed = (s().squeeze(1) - errors).norm() / errors.norm()
        return {"model_error": float((theta - truth).norm() / truth.norm()), "noise_error": float(missed)}
