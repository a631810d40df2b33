"""Activation patterns against brute force over directions, the count of the theory, and degenerate data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
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


def holds_more_than_zeros(X: Tensor, pattern: Tensor, radius: Tensor) -> bool:
    """Whether (2 D - I) X v >= sum_j radius_j |v_j| has a solution v other than 0, by linear programming."""
    n, d = X.shape
    sides = (2 * pattern.double() - 1)[:, None] * X
    box = torch.eye(d, dtype=X.dtype)
    # variables v, a >= |v| and the slack, which is made large
    rows = [
        torch.cat([-sides, radius.expand(n, d), torch.ones(n, 1, dtype=X.dtype)], dim=1),
        *[torch.cat([s * box, -box, torch.zeros(d, 1, dtype=X.dtype)], dim=1) for s in (1, -1)],
    ]
    found = linprog(
        [0.0] * (2 * d) + [-1.0],
        A_ub=torch.cat(rows).numpy(),
        b_ub=[0.0] * (n + 2 * d),
        bounds=[(-1, 1)] * d + [(0, 1)] * d + [(0, None)],
    )
    return -found.fun > 1e-9


def test_perturbed_draws_are_the_patterns_that_can_hold_something() -> None:
    """The robust program would get patterns that hold only zeros, repeats would count, or the ones be moved."""
    X = torch.cat([data(7, 2), torch.ones(7, 1, dtype=torch.float64)], dim=1)
    radius = torch.tensor([0.15, 0.15, 0.0], dtype=torch.float64)
    every = activation_patterns(X, exhaustive=True)
    able = rows(torch.stack([pattern for pattern in every if holds_more_than_zeros(X, pattern, radius)]))
    found = activation_patterns(X, 30, perturbation=radius)
    assert rows(found) == able and len(found) == len(able) < len(every)
    assert torch.equal(activation_patterns(X, 5, perturbation=radius), found[:5])


def test_a_tiny_perturbation_gives_as_many_patterns_as_asked_for() -> None:
    """Repeated patterns would be counted: a radius of almost 0 would halve the program."""
    X = torch.cat([data(12, 2), torch.ones(12, 1, dtype=torch.float64)], dim=1)
    assert len(activation_patterns(X, 10, perturbation=1e-8)) == 10


def test_scale_of_rows_and_columns_does_not_matter() -> None:
    """Small rows would count as zeros, or a small column as missing, and cells be lost."""
    X = data(6, 3)
    for scaled in (X * 10.0 ** torch.arange(0, -18, -3)[:, None], X * torch.tensor([1.0, 1e-10, 1e6])):
        assert torch.equal(activation_patterns(scaled, exhaustive=True), activation_patterns(X, exhaustive=True))


@pytest.mark.parametrize(
    ("X", "arguments", "message"),
    [
        (torch.zeros(3), {}, "shape"),
        (torch.full((2, 2), math.nan), {}, "finite"),
        (torch.ones(2, 2), {"n": 0}, "at least 1"),
        (data(60, 5), {"exhaustive": True}, "sample patterns instead"),
        (data(18, 18), {"exhaustive": True}, "262144 patterns"),
        (data(5, 2), {"perturbation": 50.0}, "lower it"),
        (data(5, 2), {"perturbation": -1.0}, "0 or larger"),
        (data(5, 2), {"perturbation": torch.ones(3)}, "0 or larger"),
    ],
)
def test_bad_input(X: Tensor, arguments: dict[str, Any], message: str) -> None:
    """The user would not learn what to do."""
    with pytest.raises(InvalidInput, match=message):
        activation_patterns(X, **arguments)
