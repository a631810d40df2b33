"""The adaptive batch sampler: every sample once per epoch, sizes that only grow, resuming within an epoch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from assay.data.adaptive_batches import AdaptiveBatchSampler
from assay.errors import InvalidInput


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.lists(st.floats(0, 80), max_size=20), st.data())
def test_an_epoch_is_a_permutation_whatever_the_sizes(samples, suggestions, data):
    """Growing in the middle of an epoch would lose samples or repeat them."""
    first = data.draw(st.integers(1, samples))
    sampler = AdaptiveBatchSampler(samples, first)
    seen, sizes, suggestions = [], [first], iter(suggestions)
    for batch in sampler:
        assert len(batch) == min(sampler.batch_size, samples - len(seen))
        seen += batch
        sampler.grow_to(next(suggestions, 0))
        sizes.append(sampler.batch_size)
    assert sorted(seen) == list(range(samples))
    assert sizes == sorted(sizes) and sizes[-1] <= samples


def test_a_plain_loader_sees_the_new_size_at_once():
    """A loader that looks ahead would go on with small batches."""
    sampler = AdaptiveBatchSampler(20, 2, max_batch_size=8)
    sizes = []
    for (x,) in DataLoader(TensorDataset(torch.arange(20)), batch_sampler=sampler):
        sizes.append(len(x))
        sampler.grow_to(math.inf)
    assert sizes == [2, 8, 8, 2] and len(sampler) == 3


def test_a_run_resumes_within_an_epoch():
    """Samples would come twice, or not at all, after a restart."""
    sampler = AdaptiveBatchSampler(30, 4, generator=torch.Generator().manual_seed(3))
    batches = iter(sampler)
    next(batches)
    sampler.grow_to(7)
    state = sampler.state_dict()
    resumed = AdaptiveBatchSampler(30, 4)
    resumed.load_state_dict(state)
    assert [*batches, *sampler] == [*resumed, *resumed]


@pytest.mark.parametrize("sizes", [(10, 0, None), (10, 11, None), (10, 4, 11), (10, 4, 3)])
def test_schedules_beyond_the_data_are_refused(sizes):
    """Batches could never reach the size that is asked for."""
    with pytest.raises(InvalidInput, match="batch_size"):
        AdaptiveBatchSampler(*sizes)


def test_nan_and_foreign_states_are_refused():
    """A diverged run would go on with some batch size."""
    sampler = AdaptiveBatchSampler(10, 2)
    with pytest.raises(InvalidInput, match="NaN"):
        sampler.grow_to(math.nan)
    with pytest.raises(InvalidInput, match="samples"):
        sampler.load_state_dict({**sampler.state_dict(), "order": torch.arange(5)})


def test_a_broken_off_epoch_is_not_continued():
    """After a look at the first batch, the next epoch would lack its samples."""
    sampler = AdaptiveBatchSampler(10, 2)
    next(iter(sampler))
    assert sorted(i for batch in sampler for i in batch) == list(range(10))
