"""What the study of opposing-signals adds of its own: the toy's exact loss, fair arms, what a trial reports, its pictures."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from assay.papers.opposing_signals.study import study, tiles
from assay.papers.opposing_signals.toy import gradient, loss, toy
from assay.streams import Streams

TOY = {"variance": 10.0, "features": 4, "width": 5, "scale": 0.01, "lr": 0.02}


def test_the_toys_loss_is_the_mean_over_all_inputs():
    """The population loss differs by more than its constant from the squared error, taken over signs with the same moments."""
    generator, width = torch.Generator().manual_seed(0), 3
    A, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((width, 3), (width,)))
    beta, v = torch.tensor([0.7, -0.4], dtype=torch.float64), 5.0
    errors = []
    for signs in itertools.product((-1.0, 1.0), repeat=3):
        x = torch.tensor(signs, dtype=torch.float64) * torch.tensor([1, 1, math.sqrt(v)], dtype=torch.float64)
        errors.append(((b @ A @ x - beta @ x[:2] - x[2].abs()) ** 2 / 2).item())
    found = loss(torch.cat([A.flatten(), b]), beta, v, width).item()
    assert found + v / 2 == pytest.approx(np.mean(errors))
    expected = torch.func.grad(loss)(torch.cat([A.flatten(), b]), beta, v, width)
    assert torch.allclose(gradient(torch.cat([A.flatten(), b]), beta, v, width), expected)


@pytest.mark.parametrize("beta", [2.0, 4.0])
def test_the_toy_ends_as_sharp_as_the_theory_says(beta):
    """Sharpness is not v |beta| at the end of the flow, or the flow has not ended."""
    record = toy(Streams("t", 0), beta=beta, time=8.0, **TOY)
    assert record.metrics["loss"] < 1e-6
    assert record.metrics["sharpness_ratio"] == pytest.approx(1, abs=0.01)
    values = record.series["sharpness"].values
    assert values[-1] == record.metrics["sharpness_ratio"] * 10 * beta
    assert record.metrics["sharpness_rise"] == values[-1] / min(values) > 1


def test_arms_differ_in_the_step_only():
    """Another network, loss or number of measurements decides."""
    for scale in ("smoke", "desk", "paper"):
        large, small = (dict(study(scale).arms[name].arguments) for name in ("large", "small"))
        assert large.pop("lr") > 2 * small.pop("lr") and large == small


def test_a_trial_ends_at_the_loss_and_reports_what_it_saw():
    """It stops elsewhere, averages something else, or leaves out a control, a curve or a picture."""
    arm = study("smoke").arms["large"].but(most=60, until=1.9)
    record = arm(Streams("t", 0))
    assert 1.7 < record.metrics["train_loss"] <= 1.9
    curve = record.series["opposition"]
    assert curve.steps == tuple(range(0, int(record.metrics["steps"]), 10))
    assert record.metrics["opposition"] == pytest.approx(np.mean(curve.values[-2:]))
    assert record.metrics["edge"] == pytest.approx(record.metrics["sharpness"] * 0.3 / 2)
    for name in ("leverage", "leverage_random", "leverage_highest_loss"):
        assert 0 < record.metrics[name] < 1.3
    assert -1 <= record.metrics["opposition_random"] <= 1
    assert set(record.pictures) == {"samples whose loss is rising", "samples whose loss is falling"}
    assert {picture.shape for picture in record.pictures.values()} == {(8, 48)}
    curve = record.series["loss of the rising group"]
    assert curve.values[1] > curve.values[0] and len(curve.values) == 12


def test_tiles_stand_side_by_side():
    """An image is out of place, upside down, or its colours are swapped."""
    images = torch.arange(8 * 3 * 2 * 2, dtype=torch.float32).view(8, 3, 2, 2)
    page = tiles(images, columns=6)
    assert page.shape == (4, 12, 3) and page.dtype == np.uint8
    for i in range(8):
        row, column = divmod(i, 6)
        expected = (255 * images[i] / 95).round().byte().movedim(0, -1).numpy()
        assert np.array_equal(page[2 * row : 2 * row + 2, 2 * column : 2 * column + 2], expected)
    assert page[2:, 4:].max() == 0
    assert tiles(images[:, :1]).shape == (4, 12)
