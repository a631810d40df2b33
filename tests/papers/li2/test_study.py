"""What the study of li2 adds of its own: the loss, the search for the threshold, ascent, and comparable arms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from assay.lab.record import Series
from assay.papers.li2.study import (
    CentredSquaredError,
    _crossing,
    _first,
    _mean_between,
    ascend_energy,
    signal_alignment,
    study,
    watch_training,
)
from assay.streams import Streams


def test_loss_is_the_squared_error_to_the_centred_one_hot() -> None:
    """The loss would be scaled or shifted, which moves every grokking time: weight decay acts against its scale."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(5, (6,), generator=generator)
    centred = scores - scores.mean(dim=1, keepdim=True)
    expected = (centred - (F.one_hot(targets, 5) - 1 / 5)).square().sum(dim=1).mean()
    loss = CentredSquaredError()
    torch.testing.assert_close(loss(scores, targets), expected)
    torch.testing.assert_close(loss(scores + torch.arange(6)[:, None], targets), expected)


@pytest.mark.parametrize("threshold", [103.0, 117.5, 139.0])
def test_the_search_finds_where_accuracy_passes_a_half(threshold: float) -> None:
    """The threshold would be off, or found by more trainings than bisection needs."""
    sizes = list(range(100, 150, 10))
    found, trainings = _crossing(lambda size: min(1.0, max(0.0, 0.5 + (size - threshold) / 20)), sizes)
    assert found == pytest.approx(threshold)
    assert trainings <= 2 + math.ceil(math.log2(len(sizes) - 1))


def test_the_search_stays_at_the_end_of_its_grid() -> None:
    """A threshold outside of the grid would be extrapolated."""
    assert _crossing(lambda size: 0.9, [10, 20, 30])[0] == 10
    assert _crossing(lambda size: 0.1, [10, 20, 30])[0] == 30


def test_wide_networks_align_and_ascent_ends_in_single_frequencies() -> None:
    """The two measurements of the dynamics would not show the limits that the theory gives in closed form."""
    table = {"modulus": 7, "share": 1.0, "eta": 1e-3}
    narrow, wide = (signal_alignment(Streams("t", 0), width=k, **table)["signal_alignment"] for k in (100, 4000))  # type: ignore[arg-type]
    assert narrow < wide and wide > 0.95  # 1 in the limit, on the whole table
    end = ascend_energy(Streams("t", 0), modulus=5, starts=8, steps=200, step_size=0.5)
    assert end["energy_error"] < 1e-6 and end["least_share"] > 1 - 1e-6


def test_windows_of_a_series() -> None:
    """A stage's mean would take in values from before or after it, or start at the wrong step."""
    series = Series((10.0, 20.0, 30.0, 40.0), (8.0, 1.0, 3.0, 20.0))
    assert _mean_between(series, 10, 30) == 2.0
    assert math.isnan(_mean_between(series, 40, 40))
    assert _first(series, 8.0, 99) == 10 and _first(series, 9.0, 99) == 40 and _first(series, 21.0, 99) == 99


def test_watched_training_adds_the_two_means_to_its_record() -> None:
    """The means would be of another series than the one that the record shows."""
    settings = study("smoke").arms["decay 0.001"].describe()
    del settings["function"]
    record = watch_training(Streams("t", 0), **{**settings, "probes": tuple(settings["probes"]), "epochs": 60})
    alignment = record.series["signal_alignment/head"]
    assert alignment.steps == (20.0, 40.0, 60.0)
    assert record.metrics["alignment_afterwards"] == pytest.approx(sum(alignment.values[1:]) / 2)


def test_arms_differ_in_what_they_compare_only() -> None:
    """A modulus would get another network or decay, or a weight decay another learning rate or budget."""
    arms = study("desk").arms
    thresholds = [arm.describe() for name, arm in arms.items() if name.startswith("M=")]
    assert len({d.pop("modulus") for d in thresholds}) == len(thresholds) == 5
    assert all(d == thresholds[0] for d in thresholds)
    decays = {name: arm.describe() for name, arm in arms.items() if name.startswith("decay ")}
    for name, description in decays.items():
        assert description.pop("optimizer") == f"adam(lr=0.01, weight_decay={name.removeprefix('decay ')})"
    assert len(decays) == 5 and all(d == decays["decay 0"] for d in decays.values())
