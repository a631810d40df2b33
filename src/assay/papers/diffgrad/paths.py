"""How far diffGrad's path is from Adam's, and from that of Adam at half the learning rate (arXiv:1909.11015).

Three copies of a network start from the same weights and see the same mini-batches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data.batching import batches
from assay.lab.record import Record, Series
from assay.lab.resources import check_deadline
from assay.names import resolve
from assay.optim.diffgrad import DiffGrad
from assay.probes.friction_trace import FrictionTrace
from assay.probes.view import View
from assay.streams import Streams

__all__ = ["paths"]


def paths(streams: Streams, *, data: str, model: str, epochs: int, batch_size: int, lr: float) -> Record:
    """Train the three copies and compare where they end.

    Args:
        streams: "data" decides the split, "init" the weights, "order" the mini-batches.
        data: A name in `assay.data`.
        model: A name in `assay.models`.
        epochs: Passes over the training data.
        batch_size: Samples per step.
        lr: diffGrad's and Adam's learning rate.

    Returns:
        "distance_ratio", |diffGrad(lr) - Adam(lr / 2)| / |diffGrad(lr) - Adam(lr)| over all weights at the end; their
        "accuracy_..." on test data at this shared rate; the friction after each epoch's last step ("friction" is the
        mean over entries and epochs), as series also by tensor.
    """
    dataset = resolve("data", data)(generator=streams.torch("data"))
    networks = [
        resolve("models", model)(dataset.input_shape, dataset.outputs, generator=streams.torch("init"))
        for _ in range(3)
    ]
    optimizers = [
        DiffGrad(networks[0].parameters(), lr=lr),
        torch.optim.Adam(networks[1].parameters(), lr=lr),
        torch.optim.Adam(networks[2].parameters(), lr=lr / 2),
    ]
    probe, view = FrictionTrace(optimizers[0]), View(networks[0])
    trace: dict[str, list[float]] = {}
    order = streams.torch("order")
    for _ in range(epochs):
        for x, y in batches(dataset.train, batch_size, order):
            check_deadline()
            for network, optimizer in zip(networks, optimizers, strict=True):
                optimizer.zero_grad()
                F.cross_entropy(network(x), y).backward()
                optimizer.step()
        for key, value in probe.measure(view).items():
            trace.setdefault(key, []).append(value)
    diffgrad, adam, halved = (nn.utils.parameters_to_vector(n.parameters()).detach() for n in networks)
    tested = [_accuracy(network, dataset.test.inputs, dataset.test.targets) for network in networks]
    metrics = {f"accuracy_{n}": a for n, a in zip(("diffgrad", "adam", "adam_half"), tested, strict=True)}
    metrics |= {key: sum(trace[key]) / epochs for key in ("friction", "friction_p99")}
    metrics |= {"friction_max": max(trace["friction_max"])}
    metrics |= {"distance_ratio": ((diffgrad - halved).norm() / (diffgrad - adam).norm()).item()}
    ends = tuple(float(epoch + 1) for epoch in range(epochs))
    return Record(metrics=metrics, series={key: Series(ends, tuple(found)) for key, found in trace.items()})


@torch.no_grad()
def _accuracy(network: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    network.eval()
    return (network(inputs).argmax(1) == targets).double().mean().item()
