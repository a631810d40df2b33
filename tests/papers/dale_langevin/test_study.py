"""What the study of Dale-Langevin adds of its own: spaces, distances, copies, equal tuning and equal training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import norm

from assay.papers.dale_langevin.frechet import copy_rate, frechet_distance
from assay.papers.dale_langevin.generation import SPACES, tiles, turned_signs
from assay.papers.dale_langevin.study import OPTIMIZERS, study
from assay.streams import Streams


def test_spaces_are_positive_and_come_back():
    """A pixel would not be above 0, or not be the same after the way there and back."""
    p = torch.linspace(0, 1, 11, dtype=torch.float64)
    for encode, decode in SPACES.values():
        assert (encode(p) > 0).all()
        torch.testing.assert_close(decode(encode(p)), p)
        assert decode(torch.tensor([1e-3, 1e3])).tolist() == [0, 1]


def test_frechet_distance_against_scipy():
    """The trace term would be wrong; of a set and itself it would not be 0."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    b = 1 + a @ torch.randn(4, 4, generator=generator, dtype=torch.float64)
    A, B = np.cov(a.numpy().T), np.cov(b.numpy().T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(A + B - 2 * np.real(sqrtm(A @ B)))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_copies_are_counted():
    """A copy would be missed, or a stranger taken for one."""
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(300, 5, generator=generator) for _ in range(2))
    samples = torch.cat([train[:30] + 1e-4, 5 + torch.randn(70, 5, generator=generator)])
    assert copy_rate(samples, train, test) == pytest.approx(0.3)


def test_tiles_place_images_row_by_row():
    """A picture would be cut or shown at the wrong place."""
    images = torch.zeros(5, 1, 2, 3)
    images[1, 0, 0, 2] = 1.0
    page = tiles(images, side=2, zoom=1)
    assert page.shape == (4, 6) and page.dtype == np.uint8
    assert np.argwhere(page).tolist() == [[0, 5]]


def test_share_of_turned_signs_in_one_step():
    """Turned signs would be missed: a step from exact scores has a normal factor, which is negative with known odds."""
    deviation, sigma, count = 0.5, 0.8, 20_000
    options = {"mean": 0.3, "deviation": deviation, "sigma": sigma, "levels": 1, "count": count}
    share = turned_signs(Streams("p", 0), sampler="UnconstrainedMultiplicativeSampler", **options)["turned"]
    spread = math.sqrt(sigma**2 + sigma**4 / (deviation**2 + sigma**2))
    expected = norm.cdf(-(1 + sigma**2 / 2) / spread)
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected / count))
    assert turned_signs(Streams("p", 0), sampler="DaleLangevinSampler", **options) == {"turned": 0.0}


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_that_compete_are_given_the_same(scale):
    """An optimizer would be tuned more than another, or the additive control be trained differently."""
    arms = study(scale).arms
    assert len({len(arms[name].tuning()) for name in arms if name.startswith("classify-")}) == 1
    assert {name.partition("/")[2] for name in arms if name.startswith("classify-")} == set(OPTIMIZERS)
    for data in {name.partition("/")[0] for name in arms if name.endswith("/additive")}:
        ours, control = (dict(arms[f"{data}/{space}"].arguments) for space in SPACES)
        assert ours.pop("space") != control.pop("space")
        assert ours == control
