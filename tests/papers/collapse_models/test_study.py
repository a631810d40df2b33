"""What the study of collapse-models adds of its own: the two arms' functions, and what they compare."""

from __future__ import annotations

import math

import pytest
import torch

from assay.papers.collapse_models.study import (
    FEATURE_ARMS,
    SINCE_ZERO_ERROR,
    study,
    terminal_phase,
    unconstrained_features,
)
from assay.streams import Streams

SIZES = {"num_classes": 3, "samples_per_class": 2, "features": 4, "decay": 5e-3}
TINY = {
    "data": "digits(train=40, validation=20, test=60)",
    "model": "mlp(width=32, batch_norm=True)",
    "loss": "cross-entropy",
    "optimizer": "sgd(lr=0.1, momentum=0.9)",
    "batch_size": 20,
}


@pytest.mark.parametrize(("loss", "bias"), FEATURE_ARMS.values())
def test_unconstrained_features_end_at_the_closed_form(loss: str, bias: bool) -> None:
    """The arm would report a gap, or no collapse, where the theorem says that there is none."""
    metrics = unconstrained_features(Streams("test", 0), loss, bias, **SIZES)  # type: ignore[arg-type]
    assert abs(metrics["objective_gap"]) < 1e-7
    assert max(metrics[name] for name in ("nc1", "nc2_etf", "nc3")) < 1e-4
    assert (metrics["nc2_of"] < 1e-4) == (loss == "mse" and not bias)


def test_unconstrained_features_notice_a_wrong_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arm would report no gap whatever the optimiser does: without a step it must report a large one."""
    monkeypatch.setattr(torch.optim.LBFGS, "step", lambda self, closure: closure())
    metrics = unconstrained_features(Streams("test", 0), "mse", True, **SIZES)  # type: ignore[arg-type]
    assert metrics["objective_gap"] > 0.01 and metrics["nc1"] > 0.01


def test_the_terminal_phase_starts_at_zero_training_error() -> None:
    """Changes are counted from another epoch, or test data are measured as training data."""
    record = terminal_phase(Streams("test", 0), epochs=12, **TINY)  # type: ignore[arg-type]
    accuracy, epoch = record.series["train_accuracy"], record.metrics["zero_error_epoch"]
    assert 1 <= epoch < 12 and dict(zip(accuracy.steps, accuracy.values, strict=True))[epoch] == 1.0
    assert all(a < 1.0 for e, a in zip(accuracy.steps, accuracy.values, strict=True) if e < epoch)
    for name in SINCE_ZERO_ERROR:
        series = record.series[name]
        start = dict(zip(series.steps, series.values, strict=True))[epoch]
        assert record.metrics[f"{name}_since_zero_error"] == record.metrics[name] - start, name
    assert record.metrics["nc1_held_out_excess"] == record.metrics["test_nc1"] - record.metrics["nc1"] > 0


def test_without_zero_error_there_is_no_terminal_phase() -> None:
    """A network that never fits its data would be judged from some other epoch on."""
    record = terminal_phase(Streams("test", 0), epochs=1, **TINY)  # type: ignore[arg-type]
    assert math.isnan(record.metrics["zero_error_epoch"]) and math.isnan(record.metrics["nc1_since_zero_error"])


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_networks_share_data_and_budget(scale: str) -> None:
    """An arm collapses because it trained longer, on other data, or with another decay."""
    networks = [arm.describe() for name, arm in study(scale).arms.items() if name.startswith("network/")]
    for field in ("data", "epochs", "batch_size"):
        assert len({str(n[field]) for n in networks}) == 1, field
    assert all("weight_decay=0.0005" in n["optimizer"] for n in networks)
