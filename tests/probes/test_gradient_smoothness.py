"""Gradient-normalised smoothness: closed forms in which gamma is known, and what the probe skips."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes.gradient_smoothness import GradientNormalizedSmoothness, smoothness_radius
from assay.probes.view import View


@given(x=st.floats(0.01, 100), L=st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_radius_of_a_cubic_is_the_distance_to_its_minimum(x: float, L: float) -> None:
    """With the exact second derivative gamma = sqrt(2 |f'| / L) = |x| for f = L |x|^3 / 6: another inequality is tested."""
    point = torch.tensor([x], dtype=torch.float64)
    radius = smoothness_radius(lambda z: L * z * z.abs() / 2, point, L * point.abs()[None], torch.ones(1, 1))
    assert radius == pytest.approx(x, rel=2e-3)


def test_radius_without_a_matrix_is_gradient_over_lipschitz_constant() -> None:
    """With H = 0 on a quadratic, gamma is ||g|| / L along the steepest eigenvector, and larger along others."""
    H = torch.diag(torch.tensor([5.0, 1.0], dtype=torch.float64))
    x, zero = torch.tensor([1.0, 1.0], dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    length = math.sqrt(26)
    assert smoothness_radius(lambda z: H @ z, x, zero, torch.eye(2)) == pytest.approx(length / 5, rel=2e-3)
    assert smoothness_radius(lambda z: H @ z, x, zero, torch.eye(2)[1:]) == pytest.approx(length, rel=2e-3)
    assert smoothness_radius(lambda z: H @ z, x, H, torch.eye(2)) == math.inf


def _cubic(weights: list[float]) -> tuple[View, list[tuple[Tensor, Tensor]]]:
    model = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    x = torch.eye(len(weights))[:1].repeat(4, 1)
    return View(model, loss=lambda scores, y: scores.pow(3).abs().mean() / 6), [
        (x[:3], torch.zeros(3, 1)),
        (x[3:], torch.zeros(1, 1)),
    ]


def test_probe_finds_the_closed_form_over_batches() -> None:
    """Batches would be averaged wrongly, or the gradient belong to another point than the matrix."""
    view, batches = _cubic([2.5])
    for matrix, key in (("ggn", "smoothness"), ("hessian", "hessian_smoothness")):
        probe = GradientNormalizedSmoothness(matrix)  # type: ignore[arg-type]
        assert probe.measure(view, batches)[key] == pytest.approx(2.5, rel=2e-3) and not probe.skipped


def test_probe_says_why_there_is_no_radius() -> None:
    """A stationary point, a perfect model or a broken network would give a number."""
    view, batches = _cubic([0.0])
    probe = GradientNormalizedSmoothness()
    assert math.isnan(probe.measure(view, batches)["smoothness"]) and "norm is 0" in probe.skipped["smoothness"]
    view, batches = _cubic([math.nan])
    assert math.isnan(probe.measure(view, batches)["smoothness"]) and "finite" in probe.skipped["smoothness"]
    view, batches = _cubic([1.0])
    view.loss = lambda scores, y: scores.square().mean()
    assert math.isnan(probe.measure(view, batches)["smoothness"]) and "right up to" in probe.skipped["smoothness"]


def test_bad_arguments_are_refused() -> None:
    """A wrong argument would give a radius of nothing."""
    with pytest.raises(InvalidInput, match="directions >= 0"):
        GradientNormalizedSmoothness(directions=-1)
    with pytest.raises(InvalidInput, match="expected \\(r, 2\\)"):
        smoothness_radius(lambda z: z, torch.ones(2), torch.eye(2), torch.ones(2))
