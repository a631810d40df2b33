"""Data sets of several domains: which sample is of which, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.dataset import Split
from assay.data.domains import DomainDataset, split_by_domain
from assay.errors import InvalidInput


def _dataset(domains: torch.Tensor, names: tuple[str, ...]) -> DomainDataset:
    split = Split(torch.arange(6.0)[:, None], torch.arange(6) % 2)
    return DomainDataset("toy", split, split, split, 2, domains, names)


def test_training_domains_are_the_samples_with_that_index() -> None:
    """A domain would get another's samples, or inputs and targets would part."""
    data = _dataset(torch.tensor([1, 0, 0, 1, 1, 0]), ("a", "b"))
    first, second = data.training_domains()
    assert first.inputs[:, 0].tolist() == [1, 2, 5] and first.targets.tolist() == [1, 0, 1]
    assert second.inputs[:, 0].tolist() == [0, 3, 4] and second.targets.tolist() == [0, 1, 0]
    assert data.to("cpu").domain_names == ("a", "b")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_splitting_keeps_every_row_once(domains: list[int]) -> None:
    """Rows of a mixed batch would be lost or doubled, or lose their order."""
    parts = split_by_domain(torch.arange(len(domains)), torch.tensor(domains))
    assert [[i for i, e in enumerate(domains) if e == domain] for domain in sorted(set(domains))] == [
        part.tolist() for part in parts
    ]


def test_bad_input_is_one_clear_error() -> None:
    """One domain only, or domains that do not fit the samples, would be trained on."""
    with pytest.raises(InvalidInput, match="1 training domain"):
        _dataset(torch.zeros(6, dtype=torch.long), ("a",))
    with pytest.raises(InvalidInput, match="needs samples"):
        _dataset(torch.zeros(6, dtype=torch.long), ("a", "b"))
    with pytest.raises(InvalidInput, match="needs samples"):
        _dataset(torch.tensor([0, 1, 2, 0, 0, 0]), ("a", "b"))
    with pytest.raises(InvalidInput, match="one per training sample"):
        _dataset(torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(InvalidInput, match="one per row"):
        split_by_domain(torch.arange(3), torch.tensor([0, 1]))
