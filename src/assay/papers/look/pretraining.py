"""One pre-training run of the study: an encoder learns coarse labels, then its frozen features are asked for fine ones.

Encoder f and linear projection g are one model, whose `head` is g; transfer reads f. Objectives see z = g(f(x)): cross-
entropy through a linear classifier on z, and LOOK with a bank of one slot per training sample, whose limit with all
others as neighbours is neighbourhood component analysis (NCA).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data.dataset import Dataset, Split
from assay.data.tabular import digits
from assay.lab.record import Record
from assay.losses.leave_one_out import LeaveOneOutKNNLoss
from assay.models.mlp import MLP
from assay.names import resolve
from assay.nn.feature_bank import FeatureBank
from assay.probes.class_statistics import class_means
from assay.probes.knn_accuracy import neighbour_votes
from assay.streams import Streams

__all__ = ["coarse_labels", "linear_probe", "pretrain", "share_between"]

CLASSES, NEIGHBOURS = 10, 5
GROUPS = {"parity": (0, 1) * 5, "animals": (0, 0, 1, 1, 1, 1, 1, 1, 0, 0), "classes": tuple(range(CLASSES))}
PENALTIES = (1e-3, 1e-2, 1e-1)


def coarse_labels(targets: Tensor, groups: str) -> Tensor:
    """Return the group of each class: a digit's parity, vehicle or animal in CIFAR-10, or the class itself."""
    return torch.tensor(GROUPS[groups], device=targets.device)[targets]


class ClassifierOnProjection(nn.Module):
    """Cross-entropy of a linear classifier on the projection; it compares with no other sample."""

    def __init__(self, dim: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.classifier = MLP((dim,), classes, depth=0, generator=generator)

    def forward(self, z: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        """Return the loss of projections (B, D) and labels (B,)."""
        return F.cross_entropy(self.classifier(z), targets)


def pretrain(
    streams: Streams,
    objective: str,
    data: str,
    groups: str,
    model: str,
    dim: int,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    labelled: int,
    k: int | None = None,
    temperature: float = 0.1,
    validation_only: bool = False,
) -> Record:
    """Train on coarse labels and measure the frozen encoder.

    Args:
        streams: "data" decides splits, "init" the weights, "classifier" those on the projection, "order" mini-batches.
        objective: "cross-entropy", "look", or "none" for the random encoder.
        data: A data set of ten classes by name.
        groups: What is learned: "parity", "animals", or "classes" for the fine labels themselves.
        model: An encoder by name; its head is the projection.
        dim: Dimension of the projection.
        epochs: Passes over the training data.
        batch_size: Samples per step.
        lr: Learning rate, with a cosine schedule to 0.
        momentum: Of SGD.
        weight_decay: Of SGD.
        labelled: Samples with fine labels that the linear probe gets.
        k: LOOK's neighbours; None is all others.
        temperature: LOOK's.
        validation_only: Leave the test data and all fine labels alone.

    Returns:
        "validation_score" (upstream accuracy) or the metrics of `_measure`.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    dataset: Dataset = resolve("data", data)(generator=streams.torch("data"))
    network: nn.Sequential = resolve("models", model)(dataset.input_shape, dim, generator=streams.torch("init"))
    train = Split(dataset.train.inputs, coarse_labels(dataset.train.targets, groups))
    criterion: nn.Module
    if objective == "look":
        bank = FeatureBank(len(train), dim)
        criterion = LeaveOneOutKNNLoss(len(train) - 1 if k is None else k, temperature, bank)
    else:
        criterion = ClassifierOnProjection(dim, int(train.targets.max()) + 1, streams.torch("classifier"))
    if objective != "none":
        parameters = [*network.parameters(), *criterion.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
        _train(network, criterion, optimizer, train, epochs, batch_size, streams.torch("order"))
    encoder = network[:-1].eval()
    if validation_only:
        return Record(metrics={"validation_score": _upstream(encoder, dataset.train, dataset.validation, groups)})
    return Record(metrics=_measure(encoder, dataset, groups, labelled, streams))


def _train(
    network: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: Split,
    epochs: int,
    batch_size: int,
    order: torch.Generator,
) -> None:
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    bank = getattr(criterion, "bank", None)
    if bank is not None:
        with torch.no_grad():
            bank.update(network(split.inputs), split.targets, torch.arange(len(split)))
    for _ in range(epochs):
        for indices in torch.randperm(len(split), generator=order).split(batch_size):
            z, targets = network(split.inputs[indices]), split.targets[indices]
            loss = criterion(z, targets, indices)
            if not loss.isfinite():
                raise FloatingPointError("the loss is not finite")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if bank is not None:
                bank.update(z, targets, indices)
        schedule.step()


def _knn(encoder: nn.Module, keys: Split, queries: Split) -> float:
    """Accuracy of the majority of the nearest keys' labels, by cosine similarity of the encoder's features."""
    with torch.no_grad():
        h_keys, h = encoder(keys.inputs).flatten(1), encoder(queries.inputs).flatten(1)
    votes = neighbour_votes(h, h_keys, keys.targets, NEIGHBOURS, CLASSES)
    return (votes.argmax(dim=1) == queries.targets).double().mean().item()


def _upstream(encoder: nn.Module, keys: Split, queries: Split, groups: str) -> float:
    return _knn(encoder, *(Split(s.inputs, coarse_labels(s.targets, groups)) for s in (keys, queries)))


@torch.no_grad()
def _measure(encoder: nn.Module, dataset: Dataset, groups: str, labelled: int, streams: Streams) -> dict[str, float]:
    """Return upstream accuracy, and accuracies on the fine labels and on the same digits of another collection."""
    other = _resized(digits(train=labelled, validation=297, test=500, generator=streams.torch("other data")), dataset)
    h, y = encoder(dataset.test.inputs).flatten(1), dataset.test.targets
    return {
        "upstream_accuracy": _upstream(encoder, dataset.train, dataset.test, groups),
        "fine_knn": _knn(encoder, dataset.train, dataset.test),
        "fine_linear": _linear(encoder, dataset, labelled),
        "other_knn": _knn(encoder, other.train, other.test),
        "other_linear": _linear(encoder, other, labelled),
        "fine_share": share_between(h, y, coarse_labels(y, groups)),
    }


def _resized(other: Dataset, like: Dataset) -> Dataset:
    """Return grey images at another data set's size and number of channels."""
    channels, *size = like.input_shape

    def resize(split: Split) -> Split:
        images = F.interpolate(split.inputs, size=size, mode="bilinear", antialias=True)
        return Split(images.expand(-1, channels, -1, -1), split.targets)

    return Dataset(other.name, resize(other.train), resize(other.validation), resize(other.test), other.num_classes)


def share_between(features: Tensor, fine: Tensor, coarse: Tensor) -> float:
    """Return the share of the variance within coarse classes that lies between the means of fine classes, 0 to 1."""
    within = [(features - class_means(features, y, CLASSES)[y]).square().sum().item() for y in (fine, coarse)]
    return 1 - within[0] / within[1] if within[1] > 0 else 0.0


def _linear(encoder: nn.Module, dataset: Dataset, labelled: int) -> float:
    parts = [(encoder(s.inputs).flatten(1), s.targets) for s in (dataset.train, dataset.validation, dataset.test)]
    train = tuple(t[:labelled] for t in parts[0])
    return linear_probe(train, parts[1], parts[2])


@torch.enable_grad()
def linear_probe(
    train: tuple[Tensor, ...], validation: tuple[Tensor, ...], test: tuple[Tensor, ...], classes: int = CLASSES
) -> float:
    """Return the test accuracy of a logistic regression on standardised features.

    Args:
        train: Features (n, d) and labels (n,).
        validation: What the penalty on the weights is chosen by, among 0.001, 0.01 and 0.1.
        test: What is reported.
        classes: C.
    """
    mean, deviation = train[0].mean(dim=0), train[0].std(dim=0)
    features = [(part[0].detach() - mean) / (deviation + 1e-6) for part in (train, validation, test)]
    results = []
    for penalty in PENALTIES:
        weights = torch.zeros(features[0].shape[1], classes, requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights, bias], max_iter=50, line_search_fn="strong_wolfe")

        def closure(weights: Tensor = weights, bias: Tensor = bias, penalty: float = penalty) -> Tensor:
            weights.grad = bias.grad = None
            loss = F.cross_entropy(features[0] @ weights + bias, train[1]) + penalty / 2 * weights.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        hits = [
            (h @ weights + bias).argmax(dim=1) == y[1] for h, y in zip(features[1:], (validation, test), strict=True)
        ]
        results.append(tuple(hit.double().mean().item() for hit in hits))
    return max(results, key=lambda pair: pair[0])[1]
