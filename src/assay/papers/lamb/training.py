"""Training for a fixed number of epochs at several batch sizes, with one learning rate carried over (arXiv:1904.00962).

Fixed epochs mean that a batch k times as large makes a k-th of the steps. The rate warms up over a tenth of the steps
and then falls to 0 in a straight line. A run whose loss is no longer a number ends there and is tested as it is.

Shapes: images (n, C, H, W) with labels (n,), or tokens (n, T) with the next tokens (n, T).
Cost: `epochs` passes over the data per batch size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from assay.data.batching import batches
from assay.data.dataset import Dataset, Split
from assay.lab.record import Record
from assay.lab.resources import check_deadline
from assay.names import resolve
from assay.optim.batch_scaling import scale_lr
from assay.probes.trust_ratio import TrustRatio
from assay.probes.view import View
from assay.streams import Streams

__all__ = ["schedule", "train"]

WARM_UP = 0.1


def train(
    streams: Streams,
    *,
    data: str,
    model: str,
    optimizer: str,
    lr: float,
    weight_decay: float,
    epochs: int,
    base_batch: int,
    batch_sizes: tuple[int, ...],
    validation_only: bool = False,
) -> Record:
    """Train one network per batch size, from the same weights, at the rate that the square root of the batch size gives.

    Args:
        streams: "data" decides the split, "init" the weights, "order" the mini-batches.
        data: A name in `assay.data`.
        model: A name in `assay.models`.
        optimizer: A name in `assay.optim` or `torch.optim`.
        lr: Peak learning rate at `base_batch`.
        weight_decay: Of tensors with two dimensions or more.
        epochs: Passes over the training data.
        base_batch: The batch size that `lr` belongs to, and the only one that is tuned at.
        batch_sizes: Those that are tested, in ascending order.
        validation_only: Train at `base_batch` only and look at validation data only.

    Returns:
        "test_accuracy" (of next characters, for text) at the largest batch size, "accuracy_<batch>" at each, and
        "degradation", the first of them minus the last; "diverged", how many did; "trust_ratio_spread", the largest over
        the smallest trust ratio at the end, at the largest batch size.
    """
    dataset = resolve("data", data)(generator=streams.torch("data"))

    def fitted(batch: int) -> tuple[nn.Module, torch.optim.Optimizer, bool]:
        network = resolve("models", model)(dataset.input_shape, dataset.outputs, generator=streams.torch("init"))
        steps = _optimizer(network, optimizer, scale_lr(lr, base_batch, batch), weight_decay)
        finite = _fit(network, steps, dataset, epochs, batch, streams.torch("order"))
        return network, steps, finite

    if validation_only:
        return Record(metrics={"validation_score": _accuracy(fitted(base_batch)[0], dataset.validation)})
    tested, diverged = [], 0
    for batch in batch_sizes:
        network, steps, finite = fitted(batch)
        tested.append(_accuracy(network, dataset.test))
        diverged += not finite
    ratios = TrustRatio(steps).measure(View(network))
    metrics = {f"accuracy_{batch}": a for batch, a in zip(batch_sizes, tested, strict=True)}
    metrics |= {"test_accuracy": tested[-1], "degradation": tested[0] - tested[-1], "diverged": float(diverged)}
    metrics["trust_ratio_spread"] = ratios["trust_ratio_max"] / ratios["trust_ratio_min"]
    count = epochs * math.ceil(len(dataset.train.inputs) / batch_sizes[-1])
    return Record(metrics=metrics, resources={"steps": float(count), "epochs": float(epochs)})


def schedule(step: int, steps: int) -> float:
    """Return the share of the peak rate in a step, from 0: a straight line up, then one down to 0 after the last."""
    warm_up = max(1, round(WARM_UP * steps))
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def _optimizer(network: nn.Module, name: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    made: torch.optim.Optimizer = resolve("optim", name)([g for g in groups if g["params"]], lr=lr)
    return made


def _fit(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    epochs: int,
    batch: int,
    order: torch.Generator,
) -> bool:
    """Train, and return whether the loss stayed a number."""
    steps = epochs * math.ceil(len(dataset.train.inputs) / batch)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(min(step, steps - 1), steps))
    for _ in range(epochs):
        for x, y in batches(dataset.train, batch, order):
            check_deadline()
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x).flatten(0, -2), y.flatten())
            if not math.isfinite(loss.item()):
                return False
            loss.backward()
            optimizer.step()
            rates.step()
    return True


@torch.no_grad()
def _accuracy(network: nn.Module, split: Split) -> float:
    network.eval()
    right = [network(x).argmax(-1) == y for x, y in batches(split, 1000)]
    return torch.cat(right).double().mean().item()
