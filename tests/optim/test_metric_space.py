"""Coordinates of a metric: lengths, gradients and matrices in them, and frozen coordinates."""

from __future__ import annotations

import math

import pytest
import torch

from assay.errors import InvalidInput
from assay.optim._metric_space import MetricSpace, metric_root


def test_lengths_and_slopes_are_those_of_the_metric() -> None:
    """Steps would be measured in another norm, or <g, d> change with the coordinates."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    B0 = root @ root.T
    B = torch.diag(1 / scale) @ B0 @ torch.diag(1 / scale)
    g, z = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    space = MetricSpace(scale, B0)
    x = space.vector(z)
    torch.testing.assert_close(x @ B @ x, z @ z)
    torch.testing.assert_close(space.covector(g) @ z, g @ x)
    torch.testing.assert_close(space.covector(g).square().sum(), g @ torch.linalg.solve(B, g))


def test_frozen_coordinates_are_zero_even_for_a_gradient_of_nan() -> None:
    """A parameter that must not move would spoil the step of all others."""
    space = MetricSpace(torch.tensor([1.0, 0.0]), None)
    assert torch.equal(space.covector(torch.tensor([2.0, math.nan])), torch.tensor([2.0, 0.0]))
    assert torch.equal(space.vector(torch.tensor([3.0, 3.0])), torch.tensor([3.0, 0.0]))


def test_asymmetric_metric_is_refused() -> None:
    """Cholesky's factorisation reads one triangle only and would take it without a word."""
    with pytest.raises(InvalidInput, match="symmetric"):
        metric_root(torch.tensor([[2.0, 1.0], [0.0, 2.0]]), 2)
