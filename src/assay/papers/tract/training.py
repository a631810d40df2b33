"""Training a small network whose first layer has TrAct's gradient, a larger step, or whitened inputs.

One loop for all arms: split, initial function, order of mini-batches and schedule are the same for one seed.
"""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from assay.data.batching import batches
from assay.data.dataset import Split
from assay.errors import InvalidInput
from assay.lab.record import Record
from assay.lab.resources import check_deadline
from assay.names import resolve
from assay.nn.first_layer_surgery import tract
from assay.streams import Streams

__all__ = ["Whitened", "input_moment", "network", "train"]

FIRST = ("plain", "tract", "whitened")
MOMENT_IMAGES = 300


def network(kind: str, input_shape: tuple[int, ...], outputs: int, kernel: int = 5) -> nn.Sequential:
    """Return "cnn" (two strided convolutions and a linear head) or "mlp" (one hidden layer of 64), by torch's draws.

    Args:
        kind: "cnn" or "mlp".
        input_shape: Of one image, (channels, height, width).
        outputs: Classes.
        kernel: Side of the first convolution's kernels.

    Raises:
        InvalidInput: If there is no such kind.
    """
    channels, height, width = input_shape
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 64), nn.ReLU(), nn.Linear(64, outputs))
    if kind != "cnn":
        raise InvalidInput(f"network must be 'cnn' or 'mlp', not {kind!r}")
    height, width = (((side - kernel) // 2 + 1 - 3) // 2 + 1 for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 16, kernel, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * height * width, outputs),
    )


def input_moment(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the second moment (n, n) of a layer's inputs: vectors, or patches of images."""
    if isinstance(layer, nn.Conv2d):
        rows = F.unfold(x, layer.kernel_size, stride=layer.stride).mT.flatten(0, 1)
    else:
        rows = x.flatten(1)
    return rows.T @ rows / len(rows)


class Whitened(nn.Module):
    """The parametrisation W = V (M + lam I)^(-1/2): training V by SGD is TrAct with one fixed moment M for all batches."""

    root: Tensor
    inverse: Tensor

    def __init__(self, moment: Tensor, lam: float) -> None:
        super().__init__()
        values, vectors = torch.linalg.eigh(moment.double())
        scales = (values.clamp(min=0) + lam).sqrt()
        self.register_buffer("root", (vectors * scales @ vectors.T).to(moment.dtype))
        self.register_buffer("inverse", (vectors / scales @ vectors.T).to(moment.dtype))

    def forward(self, V: Tensor) -> Tensor:
        """Return W."""
        return (V.flatten(1) @ self.inverse).view_as(V)

    def right_inverse(self, W: Tensor) -> Tensor:
        """Return the V that gives W, so that the initial function is that of the other arms."""
        return (W.flatten(1) @ self.root).view_as(W)


def _prepare(model: nn.Sequential, layer: nn.Module, first: str, lam: float, moment: Tensor) -> None:
    """Change the model's first layer as the arm says."""
    if first == "tract":
        tract(model, lam=lam)
    elif first == "whitened":
        parametrize.register_parametrization(layer, "weight", Whitened(moment, lam))
    elif first != "plain":
        raise InvalidInput(f"first must be one of {', '.join(FIRST)}; got {first!r}")


def train(
    streams: Streams,
    data: str,
    model: str,
    optimizer: str,
    first: str,
    epochs: int,
    batch_size: int,
    lr: float,
    kernel: int = 5,
    first_lr_factor: float = 1.0,
    lam: float = 0.1,
    validation_only: bool = False,
) -> Record:
    """Train once with a learning rate that falls to 0 along a cosine, step by step.

    Args:
        streams: "data" draws the split, "init" the weights, "order" the mini-batches.
        data: A loader of `assay.data` by name.
        model: "cnn" or "mlp".
        optimizer: One of torch's, by name with its options and without a learning rate.
        first: What the first layer is: "plain", "tract" or "whitened".
        epochs: Passes over the training set.
        batch_size: Samples per step.
        lr: Learning rate.
        kernel: Side of the first convolution's kernels.
        first_lr_factor: The first layer's learning rate over that of the others.
        lam: Ridge of TrAct and of whitening.
        validation_only: Leave the test split alone.
    """
    dataset = resolve("data", data)(generator=streams.torch("data"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.entropy("init"))
        net = network(model, dataset.input_shape, dataset.outputs, kernel)
    layer = next(m for m in net if isinstance(m, nn.Linear | nn.Conv2d))
    moment = input_moment(layer, dataset.train.inputs[:MOMENT_IMAGES])
    _prepare(net, layer, first, lam, moment)
    own = list(layer.parameters())
    rest = [p for p in net.parameters() if not any(p is q for q in own)]
    steps = resolve("optim", optimizer)([{"params": own, "lr": lr * first_lr_factor}, {"params": rest, "lr": lr}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps, epochs * math.ceil(len(dataset.train) / batch_size))
    order, start = streams.torch("order"), time.process_time()
    for _ in range(epochs):
        for x, y in batches(dataset.train, batch_size, order):
            steps.zero_grad()
            F.cross_entropy(net(x), y).backward()
            steps.step()
            schedule.step()
        check_deadline()
    seconds = time.process_time() - start
    accuracy, loss = _accuracy_and_loss(net, dataset.validation if validation_only else dataset.test)
    if not math.isfinite(loss):
        raise FloatingPointError("the loss is not finite")
    if validation_only:
        return Record(metrics={"validation_score": accuracy})
    values = torch.linalg.eigvalsh(moment).clamp(min=0) + lam
    metrics = {"test_accuracy": accuracy, "test_loss": loss, "moment_condition": float(values[-1] / values[0])}
    return Record(metrics=metrics, resources={"epoch_cpu_seconds": seconds / epochs})


@torch.no_grad()
def _accuracy_and_loss(net: nn.Module, split: Split) -> tuple[float, float]:
    net.eval()
    scores = net(split.inputs)
    return (scores.argmax(1) == split.targets).double().mean().item(), F.cross_entropy(scores, split.targets).item()
