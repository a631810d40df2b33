"""What the study of stable-spam adds of its own: a fair grid, its learning rates, and what a trial records."""

from __future__ import annotations

from typing import Any

import pytest

from assay.data.text import stdlib_text
from assay.papers.stable_spam.study import fit, learning_rate, study, train
from assay.streams import Streams


def arguments(arm: str = "int4/adamw", **changes: Any) -> dict[str, Any]:
    """The arguments of an arm at smoke scale."""
    described = study("smoke").arms[arm].describe() | changes
    del described["function"]
    return described


def test_the_rate_rises_and_falls() -> None:
    """The warm-up would not end at the peak, or the cosine not at a tenth of it."""
    rates = [learning_rate(step, 100, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0) and rates[-1] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[54] == pytest.approx(2.0 * 0.55)  # half way down


def test_arms_are_tuned_alike() -> None:
    """An arm would win by more learning rates, another budget or another model."""
    for scale in ("smoke", "desk", "paper"):
        arms = study(scale).arms
        described = {name: arm.describe() for name, arm in arms.items()}
        assert len({len(d["rates"]) for d in described.values()}) == 1
        assert len({tuple(d["rates"]) for name, d in described.items() if "sgd" not in name}) == 1
        assert all(list(d["rates"]) == sorted(d["rates"]) for d in described.values())
        shared = [
            {k: v for k, v in d.items() if k not in ("optimizer", "precision", "clip", "rates")}
            for d in described.values()
        ]
        assert all(d == shared[0] for d in shared)
        assert not study(scale).unsourced()


def test_float32_arms_differ_from_their_twins_in_precision_only() -> None:
    """What 4 bits cost an optimizer could not be read from the records."""
    for scale in ("smoke", "desk", "paper"):
        described = {name: arm.describe() for name, arm in study(scale).arms.items()}
        for optimizer in ("adamw", "adamw-clip", "stable-spam"):
            full, four = described[f"fp32/{optimizer}"], described[f"int4/{optimizer}"]
            assert full == four | {"precision": "fp32"} and four["precision"] == "int4"


def test_a_trial_reports_its_grid() -> None:
    """The best rate would not be that of least validation loss, or the spread not be over the grid."""
    streams, options = Streams("t", 0), arguments(rates=(1e-9, 0.02))
    record = train(streams, **options)
    losses = record.series["validation_loss"].values
    assert record.series["validation_loss"].steps == (1e-9, 0.02)
    assert losses[1] < losses[0] and record.metrics["chosen_lr"] == 0.02 and record.metrics["chosen"] == 1.0
    assert record.metrics["loss_spread"] == pytest.approx(losses[0] - losses[1])
    assert record.metrics["loss_at_highest"] == losses[1]
    data = stdlib_text(
        context=options["context"], train=200, validation=20, test=20, generator=Streams("t", 0).torch("data")
    )
    rest = {k: v for k, v in options.items() if k not in ("data", "context", "windows", "rates")}
    again = fit(Streams("t", 0), data, 0.02, **rest)
    assert (again.validation, again.test) == (losses[1], record.metrics["test_loss"])


def test_precisions_differ_from_the_first_step_on() -> None:
    """INT4 arms would train in full precision."""
    changes = {"rates": (1e-9,), "steps": 1}
    full, four = (train(Streams("t", 0), **arguments(arm, **changes)) for arm in ("fp32/adamw", "int4/adamw"))
    difference = abs(full.metrics["test_loss"] - four.metrics["test_loss"])
    assert 0 < difference < 0.1


def test_divergence_counts_as_knowing_nothing() -> None:
    """A diverged run would give a NaN, and the rate be chosen among NaNs."""
    record = train(Streams("t", 0), **arguments("int4/sgd", rates=(1e-3, 1e30)))
    assert record.metrics["chosen_lr"] == 1e-3
    assert record.metrics["loss_at_highest"] == pytest.approx(4.5747, abs=1e-3)  # log 97
