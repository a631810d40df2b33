"""What the study of sop adds of its own: tuned calls, one loop for all objectives, and arms that are paired."""

from __future__ import annotations

import pickle

import pytest
import torch

from assay.data import noisy_labels
from assay.lab.plan import candidates, canonical
from assay.lab.tuned_call import TunedCall
from assay.papers.sop.study import study
from assay.papers.sop.training import recover, train
from assay.streams import Streams

TINY = {
    "data": "digits(train=200, validation=100, test=200)",
    "kind": "symmetric",
    "rate": 0.4,
    "width": 16,
    "epochs": 2,
    "batch_size": 50,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
}


def test_tuning_never_sees_test_data_and_describes_its_point() -> None:
    """Settings would be chosen on test labels, or two points would be taken for one trial."""
    arm = TunedCall(train, TINY | {"objective": "cross-entropy"}, {"weight_decay": (0.0, 0.1)})
    points = candidates(arm)
    assert [point.overrides for point in points] == [{"weight_decay": 0.0}, {"weight_decay": 0.1}]
    assert len({canonical(point.describe()) for point in (*points, arm)}) == 3
    record = pickle.loads(pickle.dumps(points[1]))(Streams("t", 0))
    assert set(record.metrics) == {"validation_accuracy", "validation_score"}
    final = points[1].final()
    assert final.arguments == {**arm.arguments, "weight_decay": 0.1} and not candidates(final)


def test_without_learning_rates_sop_is_the_floor_alone() -> None:
    """Arms would differ in more than the noise variables: at rate 0 both must follow the same path."""
    sop, floor = (
        train(Streams("t", 1), objective=name, **TINY).series["test_accuracy"]  # type: ignore[arg-type]
        for name in ("sop", "clamped")
    )
    assert sop.values == pytest.approx(floor.values, abs=0.011)  # sums in another order may turn a sample or two


def test_early_stopping_reports_the_epoch_that_noisy_validation_labels_choose() -> None:
    """It would look at test labels, or at the last epoch."""
    options = TINY | {"epochs": 5, "objective": "cross-entropy"}
    last, best = (train(Streams("t", 2), checkpoint=name, **options) for name in ("last", "best"))  # type: ignore[arg-type]
    assert last.series == best.series
    validation = list(best.series["validation_accuracy"].values)
    chosen = validation.index(max(validation))
    assert best.metrics["epoch"] == chosen + 1 and last.metrics["epoch"] == 5
    assert best.metrics["test_accuracy"] == best.series["test_accuracy"].values[chosen]


def test_noise_is_a_matter_of_the_seed_and_not_of_the_arm() -> None:
    """Two arms of a seed would have other wrong labels."""
    labels = [noisy_labels(TINY["data"], rate=0.4, generator=Streams("t", s).torch("data")) for s in (0, 0, 1)]  # type: ignore[arg-type]
    assert torch.equal(labels[0].train.targets, labels[1].train.targets)
    assert not torch.equal(labels[0].train.targets, labels[2].train.targets)


def test_least_squares_in_the_linear_part_is_least_squares() -> None:
    """The baseline would be held back: after enough steps it must be the minimum-norm solution, which misses the truth."""
    sizes = {"samples": 30, "features": 20, "rank": 3, "wrong": 4, "lr": 0.1, "ratio": 0.5}
    found, later = (recover(Streams("t", 0), noise=False, steps=n, **sizes) for n in (400, 600))  # type: ignore[arg-type]
    assert found["model_error"] == pytest.approx(later["model_error"], rel=1e-6)
    assert found["model_error"] > 0.05 and found["noise_error"] == pytest.approx(1.0)


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_differ_in_what_they_are_named_for_only(scale: str) -> None:
    """An arm would win by other data, noise, epochs or a longer grid."""
    arms = {name: arm for name, arm in study(scale).arms.items() if not name.startswith("linear")}
    base = dict(arms["cross-entropy"].arguments)  # type: ignore[attr-defined]
    allowed = {
        "early-stopping": {"checkpoint"},
        "label-smoothing": {"objective"},
        "clamped": {"objective"},
        "sop": {"objective"},
        "cross-entropy": set(),
    }
    for name, arm in arms.items():
        own = dict(arm.arguments)  # type: ignore[attr-defined]
        assert {key for key in own.keys() | base.keys() if own.get(key) != base.get(key)} == allowed[name]
    assert len({len(candidates(arm)) for name, arm in arms.items() if name != "clamped"}) == 1
