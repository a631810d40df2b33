"""One-vs-rest margins against closed forms, another solver, the dual problem and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes.one_vs_rest import best_known_margin, one_vs_rest_margin


def _random(K: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _simplex(K: int) -> Tensor:
    return F.normalize(torch.eye(K, dtype=torch.float64) - 1 / K, dim=1)


def _polygon(K: int) -> Tensor:
    angles = 2 * math.pi * torch.arange(K, dtype=torch.float64) / K
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def _icosahedron() -> Tensor:
    golden = (1 + 5**0.5) / 2
    signs = [(a, b) for a in (-1, 1) for b in (-golden, golden)]
    return F.normalize(
        torch.tensor([row for a, b in signs for row in ((0, a, b), (a, b, 0), (b, 0, a))], dtype=torch.float64)
    )


@pytest.mark.parametrize("K", [2, 3, 5, 11, 40])
def test_simplex(K: int) -> None:
    """The margin of a simplex would not be K / (K - 1), the largest possible."""
    found = one_vs_rest_margin(_simplex(K))
    assert torch.allclose(found, torch.full((K,), K / (K - 1), dtype=torch.float64), rtol=1e-12)
    assert best_known_margin(K, K - 1) == pytest.approx(K / (K - 1))


@pytest.mark.parametrize(
    ("W", "expected"),
    [
        (_polygon(5), 1 - math.cos(2 * math.pi / 5)),
        (_polygon(12), 1 - math.cos(2 * math.pi / 12)),
        (torch.cat([torch.eye(6), -torch.eye(6)]), 1.0),
        (_icosahedron(), 1 - 1 / 5**0.5),
    ],
    ids=["pentagon", "dodecagon", "cross-polytope", "icosahedron"],
)
def test_codes_whose_margin_is_known(W: Tensor, expected: float) -> None:
    """Margins of regular codes would be off, or the table of best codes would not list them."""
    assert torch.allclose(one_vs_rest_margin(W), torch.full((len(W),), expected, dtype=torch.float64), rtol=1e-7)
    assert best_known_margin(*W.shape) == pytest.approx(expected)


def test_vectors_that_are_not_extreme_have_margin_zero() -> None:
    """A duplicated class vector, or one between others, could still be told apart."""
    W = _random(8, 3)
    W[5] = W[2]
    W[7] = (W[0] + 2 * W[1] + W[3]) / 4
    margins = one_vs_rest_margin(W)
    assert margins[[2, 5, 7]].abs().max() < 1e-8
    assert one_vs_rest_margin(torch.ones(4, 3)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("K", "d"), [(6, 2), (14, 4), (7, 12)])
def test_another_solver_finds_the_same_distance(K: int, d: int) -> None:
    """The distance would not be that of the convex hull: SLSQP on the weights of the combination must agree."""
    W = _random(K, d, seed=K).numpy()
    found = one_vs_rest_margin(torch.from_numpy(W))
    for k in range(K):
        others = np.delete(W, k, axis=0)
        result = minimize(
            lambda a, k=k, others=others: np.sum((W[k] - a @ others) ** 2),
            np.full(K - 1, 1 / (K - 1)),
            jac=lambda a, k=k, others=others: 2 * others @ (a @ others - W[k]),
            bounds=[(0, 1)] * (K - 1),
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        assert found[k].item() == pytest.approx(math.sqrt(result.fun), abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 60), st.integers(1, 6), st.integers(0, 10**6))
def test_the_distance_is_certified_by_a_separating_plane(K: int, d: int, seed: int) -> None:
    """Few points at first, or a violated one forgotten: by duality no distance may exceed or fall short of the plane's."""
    W = _random(K, d, seed)
    rho = one_vs_rest_margin(W)
    for k in (0, K - 1):
        gaps = (W[k] - torch.cat([W[:k], W[k + 1 :]])).numpy()
        inside = linprog(np.zeros(K - 1), A_eq=np.vstack([gaps.T, np.ones(K - 1)]), b_eq=np.eye(d + 1)[d]).status == 0
        assert (rho[k] < 1e-7) == inside  # linear programming says whether it lies in the hull
        # rho is the maximum over unit h of min_j <w_k - w_j, h>: no direction tried may beat it.
        directions = F.normalize(_random(200, d, seed + 1), dim=1).numpy()
        assert (directions @ gaps.T).min(axis=1).max() <= rho[k].item() + 1e-9


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_rotation_shift_scale_and_order(seed: int, factor: float) -> None:
    """A distance would depend on the basis, the origin or the order of classes, or not grow with lengths."""
    W = _random(12, 3, seed)
    base = one_vs_rest_margin(W)
    rotation = torch.linalg.qr(_random(3, 3, seed + 1)).Q
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    moved = factor * (W @ rotation + _random(1, 3, seed + 2))[order]
    assert torch.allclose(one_vs_rest_margin(moved), factor * base[order], rtol=1e-6, atol=1e-6 * factor)


def test_what_has_no_margin_is_refused() -> None:
    """One class, or NaN weights, would get a number."""
    for W in (torch.ones(1, 3), torch.ones(3)):
        with pytest.raises(InvalidInput, match=r"at least 2 class vectors"):
            one_vs_rest_margin(W)
    with pytest.raises(InvalidInput, match="NaN"):
        one_vs_rest_margin(torch.tensor([[1.0], [math.nan]]))
    with pytest.raises(InvalidInput, match="at least 2 classes"):
        best_known_margin(1, 3)
    assert best_known_margin(3, 1) == 0.0 and best_known_margin(100, 10) is None
