"""The study's deep network: its starts are what they are called."""

from __future__ import annotations

import math

import pytest
import torch

from assay.errors import InvalidInput
from assay.papers.gradient_noise.networks import deep_mlp
from assay.papers.gradient_noise.study import CONSTANT, ETAS, study


def _matrices(**options: object) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = deep_mlp((1, 14, 14), 10, **options)
    return [p.detach() for p in model.parameters() if p.ndim == 2]


@pytest.mark.parametrize(("start", "deviation"), [("zero", 0.0), ("simple", 0.1), ("good", math.sqrt(2 / 50))])
def test_starts_have_their_size(start, deviation):
    """An arm would start elsewhere than its name says."""
    inner = torch.cat([m.flatten() for m in _matrices(start=start)[1:-1]])
    assert float(inner.std()) == pytest.approx(deviation, rel=0.02, abs=1e-12)


def test_jitter_is_added_to_every_parameter():
    """The control would leave biases at zero, where the noise would not have."""
    torch.manual_seed(0)
    model = deep_mlp((1, 14, 14), 10, jitter=0.2)
    assert all(float(p.detach().abs().min()) > 0 for p in model.parameters())
    with pytest.raises(InvalidInput, match="start"):
        deep_mlp((4,), 2, start="bad")


def test_constant_noise_has_the_annealed_variance_in_all():
    """The control would be stronger or weaker noise, not noise of another shape."""
    for eta, constant in zip(ETAS, CONSTANT, strict=True):
        assert 940 * constant == pytest.approx(eta * sum((1 + t) ** -0.55 for t in range(940)), rel=0.02)


def test_arms_have_equal_candidates():
    """One arm would be tuned better than another."""
    assert {len(arm.tuning()) for arm in study("desk").arms.values()} == {6}
