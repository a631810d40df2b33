"""Drift and diffusion of mini-batch gradients, against their definitions and known laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from assay.errors import InvalidInput
from assay.probes.gradient_drift import gradient_snr


def test_lengths_of_mean_and_deviation_over_batches():
    """Mean and deviation are taken over entries, not over mini-batches, or in another unit than the weight's length."""
    g = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.full((3, 4), 0.5, dtype=torch.float64)
    a = g.numpy()
    mean, deviation = np.linalg.norm(a.mean(axis=0)), np.linalg.norm(a.std(axis=0))
    unit = math.sqrt(12 * 0.25)
    assert gradient_snr(g, weight) == pytest.approx((mean / unit, deviation / unit, mean / deviation))
    assert gradient_snr(g).ratio == pytest.approx(gradient_snr(5 * g, 2 * weight).ratio)


def test_pure_noise_diffuses_and_a_constant_drifts():
    """The two phases are not told apart: the ratio of pure noise is about 1 / sqrt(B), that of a constant has no end."""
    noise = torch.randn(100, 2000, generator=torch.Generator().manual_seed(0))
    assert gradient_snr(noise).ratio == pytest.approx(0.1, rel=0.05)
    assert gradient_snr(torch.ones(3, 2)).ratio == math.inf
    assert math.isnan(gradient_snr(torch.zeros(3, 2)).ratio)


def test_bad_input_is_refused():
    """One gradient has no deviation; a diverged one has no length; a zero weight is no unit."""
    for gradients in (torch.ones(1, 3), torch.tensor(1.0), torch.tensor([[1.0], [math.nan]])):
        with pytest.raises(InvalidInput):
            gradient_snr(gradients)
    for weight in (torch.ones(2), torch.zeros(3)):
        with pytest.raises(InvalidInput):
            gradient_snr(torch.ones(2, 3), weight)
