"""A data set whose samples know their number, for objectives with state per training sample.

Used with `assay.losses.SOPLoss` (arXiv:2202.14026): the number must survive shuffling, and a wrong one is silent.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset as TorchDataset

__all__ = ["IndexedDataset"]


class IndexedDataset(TorchDataset[tuple[Any, ...]]):
    """Any map-style data set, with each sample's number behind its other fields.

    Wrap what the loader draws from: around a subset or an augmentation, the number is that of the outer data set, 0 to
    len - 1. A random augmentation inside keeps it, as sample i stays sample i.

    Args:
        data: Anything with `len` and integer indexing that gives a tuple.

    Example:
        >>> import torch
        >>> pairs = torch.utils.data.TensorDataset(torch.zeros(5, 2), torch.arange(5) % 2)
        >>> x, y, index = IndexedDataset(pairs)[3]
        >>> int(y), index
        (1, 3)
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return the sample's fields and its number."""
        return (*self.data[index], index)
