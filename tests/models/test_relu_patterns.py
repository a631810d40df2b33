"""Activation patterns against brute force over directions, the count of the theory, and degenerate data."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.errors import InvalidInput
from assay.models.relu_patterns import activation_patterns


def rows(patterns: Tensor) -> set[tuple[bool, ...]]:
    """The patterns as a set."""
    return set(map(tuple, patterns.tolist()))


def data(n: int, d: int, seed: int = 0) -> Tensor:
    """Data in general position."""
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 7))
def test_all_patterns_of_the_plane(seed: int, n: int) -> None:
    """Patterns that a turning vector meets would be missing, or others be there."""
    X = data(n, 2, seed)
    angles = torch.linspace(0, 2 * math.pi, 3000, dtype=torch.float64)
    met = rows(torch.stack([angles.cos(), angles.sin()], dim=1) @ X.T >= 0)
    every = rows(activation_patterns(X, exhaustive=True))
    assert met <= every and len(every) == 2 * n


@pytest.mark.parametrize(("n", "d"), [(8, 3), (7, 4), (3, 5), (6, 1)])
def test_count_is_the_theorys(n: int, d: int) -> None:
    """Cells of data in general position would be missed or counted twice."""
    r = min(n, d)
    patterns = activation_patterns(data(n, d), exhaustive=True)
    expected = 2 * sum(math.comb(n - 1, k) for k in range(r))
    assert len(patterns) == len(rows(patterns)) == expected


def test_sampled_are_among_all() -> None:
    """A sampled pattern would be none, or draws would not be those of the first."""
    X = data(9, 3)
    every = rows(activation_patterns(X, exhaustive=True))
    few, many = (activation_patterns(X, n, generator=torch.Generator().manual_seed(3)) for n in (20, 3000))
    assert rows(few) <= rows(many) <= every and len(rows(many)) > 0.8 * len(every)
    assert torch.equal(many[: len(few)], few), "not in the order of drawing"
    assert len(rows(few)) == len(few) <= 20


def test_degenerate_data() -> None:
    """Copies, opposite rows, zeros and rows on one line would give cells that aren't there."""
    X = data(3, 3)
    degenerate = torch.cat([X, X[:1], -2 * X[1:2], X[:1] + X[1:2], torch.zeros(1, 3, dtype=torch.float64)])
    every = activation_patterns(degenerate, exhaustive=True)
    assert rows(every) == rows(activation_patterns(degenerate, 5000))
    assert bool((every[:, 3] == every[:, 0]).all() and (every[:, 4] != every[:, 1]).all() and every[:, 6].all())
    assert activation_patterns(torch.zeros(2, 2), exhaustive=True).tolist() == [[True, True]]


def test_perturbed_draws() -> None:
    """Patterns of moved data would be missing, or the column of ones be moved."""
    X = torch.cat([torch.full((6, 1), 1e-3), torch.ones(6, 1)], dim=1)
    still = activation_patterns(X, 200, perturbation=torch.tensor([0.0, 0.0]))
    moved = activation_patterns(X, 200, perturbation=torch.tensor([1.0, 0.0]))
    assert rows(still) == {(True,) * 6, (False,) * 6} and len(moved) > 10


@pytest.mark.parametrize(
    ("X", "arguments", "message"),
    [
        (torch.zeros(3), {}, "shape"),
        (torch.full((2, 2), math.nan), {}, "finite"),
        (torch.ones(2, 2), {"n": 0}, "at least 1"),
        (data(60, 5), {"exhaustive": True}, "sample patterns instead"),
    ],
)
def test_bad_input(X: Tensor, arguments: dict[str, int], message: str) -> None:
    """The user would not learn what to do."""
    with pytest.raises(InvalidInput, match=message):
        activation_patterns(X, **arguments)  # type: ignore[arg-type]
