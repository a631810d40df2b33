"""Counting outliers: by height, by gap, and the bulk's share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.probes.outlier_count import bulk_share, count_above, count_before_gap


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 200), st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_separated_outliers_are_counted_whatever_the_order_and_scale(
    outliers: int, bulk: int, seed: int, scale: float
) -> None:
    """A count would depend on the order of eigenvalues, on their unit, or on how many lie in the bulk."""
    generator = torch.Generator().manual_seed(seed)
    low = 1e-4 * (2 * torch.rand(bulk, generator=generator, dtype=torch.float64) - 1)
    high = 1 + torch.rand(outliers, generator=generator, dtype=torch.float64)
    values = scale * torch.cat([low, high])[torch.randperm(bulk + outliers, generator=generator)]
    assert count_above(values) == outliers
    assert bulk_share(values) == pytest.approx(bulk / (bulk + outliers))
    if bulk > 1 and low.max() > 1e-6:  # a gap that is wider than those within the bulk
        assert count_before_gap(values, outliers) == outliers


def test_the_gap_is_looked_for_within_the_limit_and_above_zero() -> None:
    """The ratio of two numbers at rounding level, or across zero, would win."""
    values = torch.tensor([8.0, 4.0, 1.0, 1e-9, -5.0])
    assert [count_before_gap(values, limit) for limit in (1, 2, 3, 9)] == [1, 2, 3, 4]
    assert count_before_gap(torch.tensor([8.0, 4.0, 1.0, 0.9]), 9) == 2


def test_a_spectrum_without_a_positive_end_is_refused() -> None:
    """A fraction of a negative largest eigenvalue would count everything or nothing."""
    for values in ([-1.0, -2.0], [], [float("nan"), 1.0], [[1.0]]):
        with pytest.raises(InvalidInput):
            count_above(torch.tensor(values))
    with pytest.raises(InvalidInput):
        count_before_gap(torch.tensor([1.0]), 3)
