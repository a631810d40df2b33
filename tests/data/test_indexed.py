"""Data sets that give each sample's number."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from assay.data.indexed import IndexedDataset


def test_numbers_survive_shuffling_and_batching() -> None:
    """A sample would come with another sample's number, which nothing downstream can notice."""
    x = torch.arange(30.0)[:, None]
    loader = DataLoader(
        IndexedDataset(TensorDataset(x, 2 * torch.arange(30))), 7, shuffle=True, generator=torch.Generator()
    )
    seen = []
    for inputs, targets, index in loader:
        assert torch.equal(inputs[:, 0].long(), index) and torch.equal(targets, 2 * index)
        seen += index.tolist()
    assert sorted(seen) == list(range(30))


def test_around_a_subset_numbers_start_at_zero() -> None:
    """A table of the subset's size would be too short for its numbers."""
    data = IndexedDataset(Subset(TensorDataset(torch.arange(10)), [8, 2, 5]))
    assert [(int(x), i) for x, i in (data[k] for k in range(len(data)))] == [(8, 0), (2, 1), (5, 2)]
