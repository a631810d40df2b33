"""Training with and without USEFUL's second copies, at a number of examples that the arms share (arXiv:2404.17768).

USEFUL costs t epochs to find its examples and then makes every epoch longer. Its controls therefore see as many
examples as it does in all: training on the data as they are, and with as many second copies drawn at random per class.

A patch may be put on a share of the images: one bright pixel among the first, whose place says the class. It is learned
at once, so that what a network knows without it shows how far it got beyond the fast feature.

Shapes: n images (n, C, H, W), labels (n,), u upsampled examples.
Cost: `samples` examples forward and backward, twice that with SAM, and 2-means on n scores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data.batching import batches
from assay.data.dataset import Split
from assay.data.useful import UsefulSampler, early_outputs, useful_indices
from assay.errors import InvalidInput
from assay.lab.record import Record
from assay.lab.resources import check_deadline
from assay.names import resolve
from assay.optim.sam import SAM
from assay.streams import Streams

__all__ = ["random_indices", "train", "with_patch"]

COPIES = ("none", "useful", "random")
DECAYS = (0.5, 0.75)


def train(
    streams: Streams,
    *,
    data: str,
    model: str,
    copies: str,
    rho: float,
    epochs: int,
    early_epochs: int,
    equal_samples: bool,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    patched: float,
) -> Record:
    """Train a classifier from scratch and test it.

    Args:
        streams: "data" decides the split, "init" the weights, "order" the mini-batches, "noise" patches and random
            copies.
        data: A name in `assay.data`.
        model: A name in `assay.models`.
        copies: Which examples come twice in an epoch: "none", "useful" or "random" ones.
        rho: SAM's radius; 0 is SGD.
        epochs: Passes over the examples and their copies.
        early_epochs: t, SGD at the initial step size before USEFUL looks.
        equal_samples: Whether "none" and "random" see as many examples as USEFUL, its early epochs included.
        batch_size: Examples per step.
        lr: Step size, a tenth of it after half and a hundredth after three quarters of the steps.
        momentum: SGD's.
        weight_decay: SGD's.
        patched: Share of images, in training and test alike, that have the patch.

    Returns:
        `test_accuracy`; `accuracy_without_patch`, of all test images without it, and `accuracy_with_patch`;
        `upsampled_share`, u / n; `found_without_patch`, the share of training images without the patch that are in U;
        resources: examples seen, and gradients of an example computed.

    Raises:
        InvalidInput: If `copies` is unknown.
    """
    if copies not in COPIES:
        raise InvalidInput(f"copies must be one of {', '.join(COPIES)}; got {copies!r}")
    dataset = resolve("data", data)(generator=streams.torch("data"))
    noise, n = streams.torch("noise"), len(dataset.train)
    chosen = torch.rand(n, generator=noise) < patched
    bright = float(dataset.train.inputs.max())
    split = with_patch(dataset.train, chosen, bright, dataset.outputs)

    def fit(indices: Tensor, samples: int, rho: float, decays: tuple[float, ...] = DECAYS) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(streams.entropy("init"))
            network = resolve("models", model)(dataset.input_shape, dataset.outputs)
        optimizer = torch.optim.SGD(network.parameters(), lr, momentum, weight_decay=weight_decay)
        order = _order(UsefulSampler(n, indices, streams.torch("order")), batch_size, samples)
        _fit(network, SAM(optimizer, rho) if rho else optimizer, split, order, decays)
        return network

    none = torch.empty(0, dtype=torch.long)
    early = fit(none, early_epochs * n, 0.0, decays=())
    useful, _ = useful_indices(*early_outputs(early, batches(split, 2048)), streams.entropy("noise") % 2**32)
    picked = {"none": none, "useful": useful, "random": random_indices(useful, split.targets, noise)}[copies]
    samples = epochs * (n + len(picked))
    if equal_samples and copies != "useful":
        samples = epochs * (n + len(useful)) + early_epochs * n
    network, everywhere = fit(picked, samples, rho), torch.ones(len(dataset.test), dtype=torch.bool)
    with_it = with_patch(dataset.test, everywhere, bright, dataset.outputs)
    tested = _accuracies(network, dataset.test, with_it, patched)
    spent = samples + (early_epochs * n if copies == "useful" else 0)
    evaluated = spent + (samples if rho else 0)
    if patched:
        tested["found_without_patch"] = torch.isin((~chosen).nonzero().squeeze(1), useful).double().mean().item()
    return Record(
        metrics={**tested, "upsampled_share": len(useful) / n},
        resources={"samples": float(spent), "gradients": float(evaluated)},
    )


def random_indices(useful: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    """Return as many random examples of each class as USEFUL takes, in ascending order."""
    parts = []
    for label in targets[useful].unique():
        members = (targets == label).nonzero().squeeze(1)
        count = int((targets[useful] == label).sum())
        parts.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat([useful[:0], *parts]).sort().values


def with_patch(split: Split, chosen: Tensor, bright: float, classes: int) -> Split:
    """Return the images, of the chosen ones with the first pixels, one per class, dark except for the class's own.

    Args:
        split: Images (n, C, H, W) of at least as many pixels as classes, and labels.
        chosen: Which images get the patch, bool (n,).
        bright: Value of the class's pixel; the others get the images' minimum.
        classes: K, the pixels of the patch, in reading order from the top left.
    """
    if not chosen.any():
        return split
    own = F.one_hot(split.targets[chosen], classes)[:, None].bool()
    pixels = split.inputs.flatten(2).clone()
    pixels[chosen, :, :classes] = torch.where(own, bright, split.inputs.min())
    return Split(pixels.view_as(split.inputs), split.targets)


def _order(sampler: UsefulSampler, batch_size: int, samples: int) -> list[Tensor]:
    """Return the indices of mini-batches, epoch after epoch, until so many examples were drawn."""
    order: list[Tensor] = []
    while samples > 0:
        epoch = torch.tensor(list(sampler))[:samples]
        samples -= len(epoch)
        order += epoch.split(batch_size)
    return order


def _fit(
    network: nn.Module, optimizer: torch.optim.Optimizer, split: Split, order: list[Tensor], decays: tuple[float, ...]
) -> None:
    """Train on mini-batches in order; the step size falls to a tenth after each of these shares of them."""
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(share * len(order)) for share in decays])
    network.train()
    for indices in order:
        x, y = split.inputs[indices], split.targets[indices]

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        schedule.step()
        check_deadline()


def _accuracies(network: nn.Module, test: Split, with_it: Split, patched: float) -> dict[str, float]:
    """Return accuracies; all test images are seen both without and with the patch, and weighted by its share."""
    without = _accuracy(network, test)
    if not patched:
        return {"test_accuracy": without}
    seen = _accuracy(network, with_it)
    return {
        "test_accuracy": patched * seen + (1 - patched) * without,
        "accuracy_without_patch": without,
        "accuracy_with_patch": seen,
    }


@torch.no_grad()
def _accuracy(network: nn.Module, split: Split) -> float:
    network.eval()
    right = torch.cat([network(x).argmax(dim=1) == y for x, y in batches(split, 2048)])
    return right.double().mean().item()
