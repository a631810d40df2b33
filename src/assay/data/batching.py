"""Mini-batches cut out of a split in memory.

One permutation per epoch and one `index_select` per mini-batch: no workers, no collation, no per-sample Python.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from assay.data.dataset import Split
from assay.errors import InvalidInput

__all__ = ["batches"]


def batches(
    split: Split, batch_size: int | None = None, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of (inputs, targets); the last mini-batch may be smaller.

    Args:
        split: Where the samples come from.
        batch_size: Samples per mini-batch, at least 1; None yields the split's own tensors once, without a copy.
        generator: A CPU generator that shuffles the epoch; None keeps the order and yields views.

    Returns:
        An iterator over one epoch.

    Raises:
        InvalidInput: If `batch_size` is below 1.

    Example:
        >>> split = Split(torch.arange(5.0)[:, None], torch.arange(5))
        >>> [y.tolist() for _, y in batches(split, 2)]
        [[0, 1], [2, 3], [4]]
    """
    if batch_size is not None and batch_size < 1:
        raise InvalidInput(f"batch_size must be at least 1 or None for the full batch, got {batch_size}")
    if batch_size is None:
        return iter([(split.inputs, split.targets)])
    if generator is None:
        return zip(split.inputs.split(batch_size), split.targets.split(batch_size), strict=True)
    return _shuffled(split, batch_size, generator)


def _shuffled(split: Split, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(split), generator=generator).to(split.inputs.device)
    for chosen in order.split(batch_size):
        yield split.inputs.index_select(0, chosen), split.targets.index_select(0, chosen)
