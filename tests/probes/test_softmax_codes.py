"""Softmax codes against the theorems and the best known spherical codes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad

from assay.errors import InvalidInput
from assay.probes.one_vs_rest import best_known_margin, one_vs_rest_margin
from assay.probes.softmax_codes import _objective, softmax_code


@pytest.mark.parametrize(
    ("K", "d"), [(4, 3), (5, 2), (10, 2), (5, 3), (6, 3), (7, 4), (10, 5), (12, 3), (10, 4), (16, 5), (27, 6)]
)
def test_the_search_reaches_the_best_known_code(K: int, d: int) -> None:
    """The search would get stuck, or overshoot what is proved to be the largest margin."""
    code = softmax_code(K, d, restarts=6)
    assert code.rho == pytest.approx(best_known_margin(K, d), rel=2e-4)
    assert torch.allclose(code.W.norm(dim=1), torch.ones(K, dtype=torch.float64))
    assert code.rho == one_vs_rest_margin(code.W).min().item()


@pytest.mark.parametrize(("K", "degrees"), [(7, 77.8695), (8, 74.8585), (9, 70.5288), (10, 66.1468), (24, 43.6908)])
def test_in_space_it_is_no_worse_than_the_packings_of_tammes(K: int, degrees: float) -> None:
    """The margin of the best known packing on the sphere (Tammes' problem), at least 1 - cos, would be missed."""
    assert softmax_code(K, 3, restarts=12).rho > (1 - math.cos(math.radians(degrees))) * 0.998


def test_gradient_is_the_finite_differences() -> None:
    """The search would follow a wrong gradient and end anywhere."""
    flat = np.random.default_rng(0).standard_normal(2 * 6 * 3)
    for s in (1.0, 20.0):
        error = check_grad(lambda v, s=s: _objective(v, s, 6, 3)[0], lambda v, s=s: _objective(v, s, 6, 3)[1], flat)
        assert error < 1e-5


def test_a_seed_is_a_code_and_the_caller_owns_it() -> None:
    """Two calls would differ, or writing into a result would change the next one."""
    first = softmax_code(7, 3, restarts=1, seed=3)
    kept = first.W.clone()
    first.W.zero_()
    assert torch.equal(softmax_code(7, 3, restarts=1, seed=3).W, kept)
    assert not torch.equal(softmax_code(7, 3, restarts=1, seed=4).W, kept)
    with pytest.raises(InvalidInput, match="at least 2 classes, 2 dimensions"):
        softmax_code(5, 1)
