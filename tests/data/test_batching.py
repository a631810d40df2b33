"""Mini-batches: every sample once, pairs kept, the order from the generator alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.batching import batches
from assay.data.dataset import Split
from assay.errors import InvalidInput


def _split(size: int) -> Split:
    return Split(torch.arange(float(size))[:, None].repeat(1, 3), torch.arange(size))


@given(size=st.integers(1, 50), batch_size=st.integers(1, 60), seed=st.none() | st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_an_epoch_holds_every_pair_once(size: int, batch_size: int, seed: int | None) -> None:
    """Samples could be dropped, doubled, or get another sample's target."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    pairs = list(batches(_split(size), batch_size, generator))
    assert all(torch.equal(x[:, 0].long(), y) for x, y in pairs)
    assert sorted(torch.cat([y for _, y in pairs]).tolist()) == list(range(size))
    assert [len(y) for _, y in pairs[:-1]] == [batch_size] * (len(pairs) - 1)


def test_shuffle_is_the_generators_and_moves_on() -> None:
    """Every epoch would have the same order, or the order would depend on the global seed."""
    generator, before = torch.Generator().manual_seed(5), torch.get_rng_state()
    split = _split(20)
    first, second = ([y.tolist() for _, y in batches(split, 4, generator)] for _ in range(2))
    again = [y.tolist() for _, y in batches(split, 4, torch.Generator().manual_seed(5))]
    assert first == again != second
    assert torch.equal(before, torch.get_rng_state())


def test_full_batch_and_unshuffled_batches_do_not_copy() -> None:
    """Full-batch training would copy the data set every step."""
    split = _split(6)
    ((x, y),) = batches(split, None, torch.Generator())
    assert x is split.inputs and y is split.targets
    assert next(iter(batches(split, 2)))[0].data_ptr() == split.inputs.data_ptr()


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_below_one_is_refused_at_once(batch_size: int) -> None:
    """The error would come from torch, or only when the first batch is asked for."""
    with pytest.raises(InvalidInput, match="at least 1"):
        batches(_split(3), batch_size)
