"""What the study of look adds of its own: fair readouts, paired arms, no test data while tuning, the share between."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from assay.data.dataset import Dataset
from assay.data.tabular import digits
from assay.lab.record import Record
from assay.papers.look import pretraining
from assay.papers.look.pretraining import coarse_labels, linear_probe, pretrain, share_between
from assay.papers.look.study import study
from assay.streams import Streams

SIZES = {
    "data": "digits(train=120, validation=60, test=80)",
    "groups": "parity",
    "model": "mlp(width=16)",
    "dim": 8,
    "epochs": 1,
    "batch_size": 50,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "labelled": 60,
}


def test_linear_probe_is_scikit_learns_logistic_regression() -> None:
    """The readout would not be fitted, or its penalty chosen on test data."""
    parts = []
    dataset = digits(train=200, validation=100, test=300)
    for split in (dataset.train, dataset.validation, dataset.test):
        parts.append((split.inputs.flatten(1), split.targets))
    mean, deviation = parts[0][0].mean(dim=0), parts[0][0].std(dim=0) + 1e-6
    scores = []
    for penalty in pretraining.PENALTIES:
        model = LogisticRegression(C=1 / (200 * penalty), max_iter=500)
        model.fit(((parts[0][0] - mean) / deviation).numpy(), parts[0][1].numpy())
        scores.append([model.score(((h - mean) / deviation).numpy(), y.numpy()) for h, y in parts[1:]])
    assert linear_probe(*parts) == pytest.approx(max(scores, key=lambda pair: pair[0])[1], abs=0.01)


def test_share_between_is_one_for_points_and_zero_for_one_cluster() -> None:
    """The measure of structure within coarse classes would not reach its ends."""
    fine = torch.arange(10).repeat(6)
    coarse = coarse_labels(fine, "parity")
    assert coarse[:10].tolist() == [0, 1] * 5
    spread = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    assert share_between(spread[fine], fine, coarse) == pytest.approx(1.0)
    assert share_between(spread[coarse], fine, coarse) == pytest.approx(0.0)
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    within = [sum((noise[y == c] - noise[y == c].mean(0)).square().sum() for c in y.unique()) for y in (fine, coarse)]
    assert share_between(noise, fine, coarse) == pytest.approx(float(1 - within[0] / within[1]), rel=1e-4)


def test_tuning_sees_no_test_data_and_no_fine_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate would be chosen by what is reported."""

    def refuse(*arguments: object) -> Record:
        raise AssertionError("test data were looked at")

    monkeypatch.setattr(pretraining, "_measure", refuse)
    seen: list[Tensor] = []
    votes = pretraining.neighbour_votes
    monkeypatch.setattr(pretraining, "neighbour_votes", lambda q, b, y, *rest: seen.append(y) or votes(q, b, y, *rest))
    record = pretrain(Streams("test", 0), "look", **SIZES, k=5, validation_only=True)
    assert set(record.metrics) == {"validation_score"} and 0.5 < record.metrics["validation_score"] <= 1
    assert seen and all(set(y.tolist()) <= {0, 1} for y in seen)


def test_arms_are_paired_and_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm would start from its own weights, data or order, and differences would not be paired."""
    seen: list[tuple[list[float], list[float]]] = []

    def spy(network: torch.nn.Module, criterion: object, optimizer: object, split: Dataset, *rest: object) -> None:
        weights = [float(p.detach().double().sum()) for p in network.parameters()]
        order = torch.randperm(9, generator=rest[-1])  # type: ignore[call-overload]
        seen.append(([*weights, float(split.inputs.sum())], order.tolist()))  # type: ignore[attr-defined]

    monkeypatch.setattr(pretraining, "_train", spy)
    for objective in ("cross-entropy", "look"):
        pretrain(Streams("test", 3), objective, **SIZES, k=5, validation_only=True)
    assert seen[0] == seen[1]


def test_a_loss_that_is_not_finite_counts_as_diverged() -> None:
    """A diverged run would go on with NaN and be reported as accuracy."""
    with pytest.raises(FloatingPointError, match="not finite"):
        pretrain(Streams("test", 0), "cross-entropy", **(SIZES | {"lr": 1e30, "epochs": 3}))


def test_competitors_get_the_same_budget_and_grid() -> None:
    """An arm would win by more epochs, more learning rates or another encoder."""
    arms = study("desk").arms
    tuned = [arms[name].describe() for name in ("cross-entropy", "nca", "look-10", "look-50")]
    for name in ("data", "model", "dim", "epochs", "batch_size", "momentum", "weight_decay", "labelled", "tune"):
        assert len({str(description[name]) for description in tuned}) == 1
