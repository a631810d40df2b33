"""Wrong labels on purpose: symmetric, asymmetric and instance-dependent noise, as the literature has them.

Symmetric and asymmetric as in the code of Liu et al. (2022, arXiv:2202.14026); instance-dependent is algorithm 2 of Xia
et al. (2020, arXiv:2006.07836). With rate r, K classes and labels y:

    symmetric    round(r N) samples get a class drawn evenly from the others (or from all, their own among them)
    asymmetric   round(r n_k) samples of class k get class transition[k]
    instance     sample i is wrong with probability q_i ~ N(r, std^2) cut to [0, 1], and then has class k != y_i with
                 probability softmax_k(x_i W_{y_i}), W random and the same for all samples

Shapes: N samples, inputs (N, ...) read as (N, d), labels int64 (N,).

Departures: numbers of wrong labels are rounded where the papers' codes round up. Cost: a pass over the labels; for
instance noise K products (n_k, d) x (d, K).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from assay.data.dataset import Dataset, Split
from assay.errors import InvalidInput
from assay.names import resolve

__all__ = [
    "CIFAR10_TRANSITION",
    "NoisyDataset",
    "NoisyLabels",
    "asymmetric_noise",
    "instance_noise",
    "noisy_labels",
    "symmetric_noise",
]

CIFAR10_TRANSITION = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}
"""Truck to automobile, bird to airplane, cat to dog and back, deer to horse."""


class NoisyLabels(NamedTuple):
    """Noisy `targets` (N,), whether each is `corrupted` (N,), and the `clean` ones (N,)."""

    targets: Tensor
    corrupted: Tensor
    clean: Tensor


def symmetric_noise(
    targets: Tensor, rate: float, num_classes: int, *, others: bool = True, generator: torch.Generator | None = None
) -> NoisyLabels:
    """Replace a share of the labels by classes drawn evenly.

    Args:
        targets: Clean classes (N,).
        rate: Share of samples whose label is drawn anew, 0 to below 1.
        num_classes: K, at least 2.
        others: Draw from the other classes, so that the rate is the share of wrong labels. False draws from all, as
            many papers do: then a share of only rate (1 - 1/K) is wrong.
        generator: Decides the draw; None is a fixed one.

    Raises:
        InvalidInput: On a rate outside [0, 1), fewer than 2 classes, or labels that are no classes.

    Example:
        >>> noisy = symmetric_noise(torch.zeros(10, dtype=torch.long), 0.3, num_classes=4)
        >>> int(noisy.corrupted.sum())
        3
    """
    generator = _checked(targets, rate, num_classes, generator)
    chosen = torch.randperm(len(targets), generator=generator)[: round(rate * len(targets))]
    noisy = targets.clone()
    if others:
        shift = torch.randint(1, num_classes, (len(chosen),), generator=generator)
        noisy[chosen] = (targets[chosen] + shift) % num_classes
    else:
        noisy[chosen] = torch.randint(num_classes, (len(chosen),), generator=generator)
    return NoisyLabels(noisy, noisy != targets, targets)


def asymmetric_noise(
    targets: Tensor,
    rate: float,
    num_classes: int,
    *,
    transition: Mapping[int, int] | None = None,
    generator: torch.Generator | None = None,
) -> NoisyLabels:
    """Give a share of each class the label of one other class.

    Args:
        targets: Clean classes (N,).
        rate: Share of each class that is relabelled, 0 to below 1; from 0.5 on the wrong class prevails.
        num_classes: K, at least 2.
        transition: The class that each takes; classes left out stay clean. None is the next one, k + 1 modulo K.
        generator: Decides the draw; None is a fixed one.

    Raises:
        InvalidInput: On a rate outside [0, 1), fewer than 2 classes, labels that are no classes, or a transition to or
            from none.

    Example:
        >>> noisy = asymmetric_noise(torch.tensor([0, 0, 1, 1]), 0.5, num_classes=2, transition={0: 1})
        >>> int(noisy.targets.sum()), int(noisy.corrupted[2:].sum())
        (3, 0)
    """
    generator = _checked(targets, rate, num_classes, generator)
    moves = {k: (k + 1) % num_classes for k in range(num_classes)} if transition is None else dict(transition)
    if not all(0 <= k < num_classes for pair in moves.items() for k in pair):
        raise InvalidInput(f"transition must map classes 0..{num_classes - 1} to such classes; got {moves}")
    noisy = targets.clone()
    for label in range(num_classes):
        members = (targets == label).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator)
        noisy[members[order[: round(rate * len(members))]]] = moves.get(label, label)
    return NoisyLabels(noisy, noisy != targets, targets)


def instance_noise(
    inputs: Tensor,
    targets: Tensor,
    rate: float,
    num_classes: int,
    *,
    std: float = 0.1,
    generator: torch.Generator | None = None,
) -> NoisyLabels:
    """Give samples wrong labels that depend on what they look like.

    Args:
        inputs: Float inputs (N, ...).
        targets: Clean classes (N,).
        rate: Mean probability of a wrong label, 0 to below 1 (exact where the cut of q to [0, 1] is far, else nearly).
        num_classes: K, at least 2.
        std: Deviation of the samples' own probabilities of a wrong label, above 0.
        generator: Decides the draw; None is a fixed one.

    Raises:
        InvalidInput: On a rate outside [0, 1), a deviation not above 0, fewer than 2 classes, labels that are no
            classes, or another number of inputs than labels.

    Example:
        >>> noisy = instance_noise(torch.eye(6), torch.arange(6) % 3, 0.4, num_classes=3)
        >>> noisy.targets.shape
        torch.Size([6])
    """
    generator = _checked(targets, rate, num_classes, generator)
    if len(inputs) != len(targets) or not inputs.is_floating_point():
        raise InvalidInput(f"expected {len(targets)} float inputs, one per label; got {len(inputs)} of {inputs.dtype}")
    if not std > 0:
        raise InvalidInput(f"std must be above 0; got {std}")
    x = inputs.flatten(1)
    q = _cut_normal(rate, std, len(x), generator)
    scores = torch.empty(len(x), num_classes)
    for label in range(num_classes):
        W = torch.randn(x.shape[1], num_classes, generator=generator, dtype=x.dtype)
        members = targets == label
        scores[members] = (x[members] @ W).float()
    chances = scores.scatter(1, targets[:, None], -torch.inf).softmax(dim=1) * q[:, None]
    chances = chances.scatter(1, targets[:, None], 1 - q[:, None])
    noisy = torch.multinomial(chances, 1, generator=generator).squeeze(1) if rate > 0 else targets.clone()
    return NoisyLabels(noisy, noisy != targets, targets)


def _cut_normal(mean: float, std: float, samples: int, generator: torch.Generator) -> Tensor:
    """Draw from N(mean, std^2) given that the value lies in [0, 1], by inverting its distribution function."""
    low, high = (0.5 * math.erfc((mean - end) / (std * math.sqrt(2))) for end in (0.0, 1.0))
    uniform = low + (high - low) * torch.rand(samples, generator=generator, dtype=torch.float64)
    return (mean + std * math.sqrt(2) * torch.erfinv(2 * uniform - 1)).clamp(0, 1).float()


def _checked(targets: Tensor, rate: float, num_classes: int, generator: torch.Generator | None) -> torch.Generator:
    if not 0 <= rate < 1:
        raise InvalidInput(f"noise rate must be 0 or larger and below 1; got {rate}")
    if num_classes < 2:
        raise InvalidInput(f"label noise needs at least 2 classes; got {num_classes}")
    if targets.ndim != 1 or targets.dtype != torch.int64 or not len(targets):
        raise InvalidInput(f"targets must be int64 classes (N,); got {targets.dtype} of shape {tuple(targets.shape)}")
    if int(targets.min()) < 0 or int(targets.max()) >= num_classes:
        found = f"{int(targets.min())} to {int(targets.max())}"
        raise InvalidInput(f"targets must lie in 0..{num_classes - 1} for {num_classes} classes; got {found}")
    return generator or torch.Generator().manual_seed(0)


@dataclass(frozen=True)
class NoisyDataset(Dataset):
    """A data set with wrong labels in its training and validation splits; the test split is clean.

    Args:
        clean: The training samples' classes (N,) before the noise.
        validation_clean: The validation samples' classes before the noise.
    """

    clean: Tensor
    validation_clean: Tensor

    @property
    def corrupted(self) -> Tensor:
        """Whether each training label (N,) is wrong."""
        return self.train.targets != self.clean

    def to(self, device: torch.device | str) -> Self:
        """Return the data set on a device."""
        moved = super().to(device)
        return replace(moved, clean=self.clean.to(device), validation_clean=self.validation_clean.to(device))


KINDS = ("symmetric", "asymmetric", "instance")


def noisy_labels(
    data: str | Callable[..., Dataset] = "digits",
    kind: str = "symmetric",
    rate: float = 0.4,
    *,
    others: bool = True,
    transition: Mapping[int, int] | None = None,
    clean_validation: bool = False,
    generator: torch.Generator | None = None,
) -> NoisyDataset:
    """Load a data set and put label noise on it; in an `Experiment`, `data="noisy-labels(data='mnist', rate=0.2)"`.

    Args:
        data: A loader of `assay.data` by name, or any callable that gives a data set with classes.
        kind: "symmetric", "asymmetric" or "instance".
        rate: See the noise's own function; 0 to below 1.
        others: For symmetric noise.
        transition: For asymmetric noise.
        clean_validation: Leave validation labels clean. Whoever has wrong training labels seldom has that luxury.
        generator: Decides the split, then the noise; None is a fixed one.

    Raises:
        InvalidInput: On an unknown kind, data without one class per sample, or what the noise itself refuses.

    Example:
        >>> data = noisy_labels("blobs(classes=4)", rate=0.25)
        >>> data.corrupted.double().mean().item(), data.name
        (0.25, 'blobs with symmetric label noise 0.25')
    """
    if kind not in KINDS:
        raise InvalidInput(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    generator = generator or torch.Generator().manual_seed(0)
    base: Dataset = resolve("data", data)(generator=generator)
    if base.num_classes is None:
        raise InvalidInput(f"label noise needs classes, but the targets of {base.name!r} are numbers")
    splits = [base.train] if clean_validation else [base.train, base.validation]
    if kind == "instance":
        # Both at once, so that equal samples of the two splits are treated alike.
        inputs, targets = (torch.cat([getattr(split, name) for split in splits]) for name in ("inputs", "targets"))
        noisy = instance_noise(inputs, targets, rate, base.num_classes, generator=generator).targets
        train, *rest = noisy.split([len(split) for split in splits])
    else:
        options: dict[str, Any] = {"others": others} if kind == "symmetric" else {"transition": transition}
        noise = symmetric_noise if kind == "symmetric" else asymmetric_noise
        train, *rest = (
            noise(split.targets, rate, base.num_classes, generator=generator, **options).targets for split in splits
        )
    return NoisyDataset(
        name=f"{base.name} with {kind} label noise {rate:g}",
        train=Split(base.train.inputs, train),
        validation=Split(base.validation.inputs, *rest) if rest else base.validation,
        test=base.test,
        num_classes=base.num_classes,
        clean=base.train.targets,
        validation_clean=base.validation.targets,
    )
