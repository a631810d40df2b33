"""Data sets as tensors in memory: three disjoint splits, checked once when they are made.

Shapes: N samples, C channels, H x W pixels, d features, K classes.
Small data needs no loader: a split is two tensors, and `assay.data.batching` cuts mini-batches out of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["Dataset", "Split", "split_dataset", "stratified_split"]


@dataclass(frozen=True)
class Split:
    """Inputs and targets of one part of a data set.

    Args:
        inputs: Shape (N, ...); images are float32 (N, C, H, W), tables float32 (N, d), text int64 (N, context).
        targets: int64 (N,) class indices, int64 (N, context) next tokens, or float32 (N, outputs) for regression.

    Raises:
        InvalidInput: If a tensor is empty, contains NaN or infinity, or the two differ in length.

    Example:
        >>> len(Split(torch.zeros(5, 3), torch.zeros(5, dtype=torch.long)))
        5
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        for name, tensor in (("inputs", self.inputs), ("targets", self.targets)):
            if tensor.ndim == 0 or tensor.numel() == 0:
                raise InvalidInput(f"{name} are empty (shape {tuple(tensor.shape)}); expected at least one sample")
            bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
            if bad:
                raise InvalidInput(f"{name} contain {bad} NaN or infinite values; remove or fill them first")
        if len(self.inputs) != len(self.targets):
            raise InvalidInput(
                f"{len(self.inputs)} inputs but {len(self.targets)} targets; expected one target per input"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device | str) -> Split:
        """Return the split on a device."""
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Dataset:
    """Train, validation and test split of one data set.

    Args:
        name: What it is called in plots and tables.
        train: For fitting.
        validation: For choosing hyper-parameters and checkpoints.
        test: For the reported number only.
        num_classes: Number of classes (or of tokens in text); None for regression.

    Raises:
        InvalidInput: If samples of the splits differ in shape, or a label lies outside 0..num_classes - 1.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int | None

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            split: Split = getattr(self, part)
            if tuple(split.inputs.shape[1:]) != self.input_shape:
                raise InvalidInput(
                    f"{self.name}: samples of {part} have shape {tuple(split.inputs.shape[1:])}, "
                    f"those of train {self.input_shape}; expected one shape"
                )
            if self.num_classes is not None:
                _check_labels(split.targets, self.num_classes, f"{self.name}: {part}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch dimension."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def outputs(self) -> int:
        """How many numbers a model must give per sample: the classes, or the dimension of a regression target."""
        if self.num_classes is not None:
            return self.num_classes
        return int(self.train.targets[0].numel())

    def to(self, device: torch.device | str) -> Self:
        """Return the data set on a device."""
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device)
        )


def _check_labels(targets: Tensor, num_classes: int, where: str) -> None:
    if targets.dtype != torch.int64:
        raise InvalidInput(f"{where}: class labels must be int64, not {targets.dtype}")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= num_classes:
        raise InvalidInput(f"{where}: labels run from {low} to {high}, expected 0 to {num_classes - 1}")


def _allocate(available: Tensor, size: int) -> Tensor:
    """Share `size` draws among classes in proportion to what is available, by largest remainder (exact integers)."""
    total = int(available.sum())
    shares, remainders = available * size // total, available * size % total
    largest = torch.argsort(remainders, descending=True, stable=True)[: size - int(shares.sum())]
    shares[largest] += 1
    return shares


def stratified_split(labels: Tensor, sizes: Sequence[int], generator: torch.Generator | None = None) -> list[Tensor]:
    """Draw disjoint sets of indices whose class proportions are those of the labels, up to rounding.

    Args:
        labels: int64 (N,); all equal for a plain random split.
        sizes: How many samples each set gets; what is left over stays out.
        generator: Decides the draw; None is the fixed draw of seed 0, never the global generator.

    Returns:
        One int64 tensor of indices per size, each in random order.

    Raises:
        InvalidInput: If a size is below 1 or the sizes exceed N.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> [labels[chosen].sum().item() for chosen in stratified_split(labels, [3, 3])]
        [1, 1]
    """
    check_sizes(sizes, len(labels))
    generator = generator or torch.Generator().manual_seed(0)
    shuffled = torch.randperm(len(labels), generator=generator)
    pools = [shuffled[labels[shuffled] == label] for label in labels.unique()]
    taken = torch.zeros(len(pools), dtype=torch.long)
    counts = torch.tensor([len(pool) for pool in pools])
    sets = []
    for size in sizes:
        shares = _allocate(counts - taken, size)
        ranges = zip(pools, taken.tolist(), (taken + shares).tolist(), strict=True)
        chosen = torch.cat([pool[start:stop] for pool, start, stop in ranges])
        sets.append(chosen[torch.randperm(size, generator=generator)])
        taken += shares
    return sets


def check_sizes(sizes: Sequence[int], available: int) -> None:
    """Refuse splits below one sample or larger together than what is there.

    Raises:
        InvalidInput: If so.
    """
    if any(size < 1 for size in sizes):
        raise InvalidInput(f"every split needs at least 1 sample, got sizes {tuple(sizes)}")
    if sum(sizes) > available:
        raise InvalidInput(f"splits of {tuple(sizes)} need {sum(sizes)} samples, but there are only {available}")


def _standardiser(train: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation over samples (and pixels of an image); a constant feature gets deviation 1."""
    dims = [0, *range(2, train.ndim)] if train.ndim == 4 else [0]
    mean, deviation = train.mean(dims, keepdim=True), train.std(dims, correction=0, keepdim=True)
    return mean, torch.where(deviation > 0, deviation, 1.0)


def split_dataset(
    name: str,
    inputs: Tensor,
    targets: Tensor,
    sizes: tuple[int, int, int],
    *,
    num_classes: int | None,
    generator: torch.Generator | None = None,
    separate_test: tuple[Tensor, Tensor] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Dataset:
    """Split raw arrays (stratified if there are classes) and standardise them with the training split's statistics.

    Args:
        name: The data set's name.
        inputs: Float (N, ...); images are standardised per channel, anything else per feature.
        targets: int64 (N,) labels or float (N, outputs); the latter are standardised too.
        sizes: Samples for train, validation and test.
        num_classes: Number of classes; None for regression.
        generator: Decides the split; None is a fixed one.
        separate_test: Inputs and targets that the test split is drawn from instead.
        transform: Applied to the chosen float inputs before they are standardised.

    Raises:
        InvalidInput: If a size is below 1, or there are fewer samples than asked for.
    """
    generator = generator or torch.Generator().manual_seed(0)
    pools: list[tuple[Tensor, Tensor, Sequence[int]]] = [(inputs, targets, sizes)]
    if separate_test is not None:
        pools = [(inputs, targets, sizes[:2]), (*separate_test, sizes[2:])]
    parts: list[tuple[Tensor, Tensor]] = []
    for pool_inputs, pool_targets, pool_sizes in pools:
        labels = pool_targets if num_classes is not None else torch.zeros(len(pool_targets), dtype=torch.long)
        chosen = stratified_split(labels, pool_sizes, generator)
        parts += [(pool_inputs[indices].float(), pool_targets[indices]) for indices in chosen]
    if transform is not None:
        parts = [(transform(x), y) for x, y in parts]
    return _standardised(name, parts, num_classes)


def _standardised(name: str, parts: list[tuple[Tensor, Tensor]], num_classes: int | None) -> Dataset:
    mean, deviation = _standardiser(parts[0][0])
    parts = [(x.sub_(mean).div_(deviation), y) for x, y in parts]  # the draw has already copied them
    if num_classes is None:
        mean, deviation = _standardiser(parts[0][1].float())
        parts = [(x, (y.float() - mean) / deviation) for x, y in parts]
    train, validation, test = (Split(x, y) for x, y in parts)
    return Dataset(name, train, validation, test, num_classes)
