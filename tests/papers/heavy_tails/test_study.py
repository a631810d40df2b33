"""What the study of heavy-tails adds of its own: Adam's first step, the removed spike, a fair readout, paired arms."""

from __future__ import annotations

import pytest
import torch

from assay.models.two_layer_student import TwoLayerStudent
from assay.papers.heavy_tails.study import RIDGES, _readout, _without_spike, study, train_student
from assay.streams import Streams

SIZES = {"n": 60, "n_test": 40, "d": 20, "h": 30, "steps": 2}


def matrix(h, d, seed=0):
    """Gaussian entries in float64."""
    return torch.randn(h, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_spike_and_nothing_else_is_removed():
    """Another component goes, or the rescaled rest has another norm than the whole update."""
    update = matrix(12, 9) + 50 * torch.outer(torch.ones(12), torch.ones(9))
    s = torch.linalg.svdvals(update)
    rest, rescaled = (_without_spike(update, removed) for removed in ("spike", "spike, rescaled"))
    assert torch.allclose(torch.linalg.svdvals(rest)[:8], s[1:])
    assert rescaled.norm().item() == pytest.approx(update.norm().item())
    assert torch.allclose(rescaled / rescaled.norm(), rest / rest.norm())
    assert _without_spike(update, "nothing") is update


def test_adams_first_step_is_the_sign_of_the_gradient(monkeypatch):
    """The optimizer has momentum of its own, decay, or an epsilon that shrinks its first step."""
    from assay.papers.heavy_tails import study as module

    seen = []
    monkeypatch.setattr(module, "_without_spike", lambda update, removed: seen.append(update.clone()) or update)
    train_student(Streams("test", 0), "adam", 0.5, **SIZES)
    assert (seen[0].abs() / 0.5 - 1).abs().median() < 1e-3
    assert ((seen[0].abs() / 0.5 - 1).abs() < 0.05).float().mean() > 0.99  # a gradient near epsilon moves less


def test_readout_is_ridge_regression_with_the_best_penalty_on_held_out_samples():
    """The closed form, the scaling of the penalty by n / h, or the choice is wrong."""
    model = TwoLayerStudent((5,), width=8, generator=torch.Generator().manual_seed(0))
    sets = [(matrix(30, 5, seed).float(), matrix(30, 1, seed + 10).float()) for seed in (1, 2, 3)]
    found = _readout(model, *sets)
    features = [(model.hidden_features(x).detach().double() / 8**0.5, y.double()) for x, y in sets]
    (F, y), (F_choose, y_choose), (F_test, y_test) = features
    losses = {}
    for ridge in RIDGES:
        fit = torch.linalg.solve(F.T @ F + ridge / 8 * 30 * torch.eye(8, dtype=torch.float64), F.T @ y)
        losses[ridge] = [((A @ fit - t) ** 2).mean().item() for A, t in ((F_choose, y_choose), (F_test, y_test))]
    best = min(RIDGES, key=lambda ridge: losses[ridge][0])
    assert found["ridge"] == best
    assert found["test_loss"] == pytest.approx(losses[best][1], rel=1e-6)
    assert found["test_loss_at_papers_ridge"] == pytest.approx(losses[0.01][1], rel=1e-6)


def test_arms_start_from_the_same_weights_and_data():
    """An arm has its own draw: differences would not be paired."""
    records = [train_student(Streams("test", 1), name, 1e-9, **SIZES) for name in ("gd", "adam")]
    for name in ("initial_test_loss", "initial_kta", "alpha_hill"):
        assert records[0].metrics[name] == pytest.approx(records[1].metrics[name], rel=1e-6)
    assert records[0].series["alpha_hill"].steps == (0, 1, 2)
    other = train_student(Streams("test", 2), "gd", 1e-9, **SIZES)
    assert other.metrics["initial_test_loss"] != records[0].metrics["initial_test_loss"]


def test_mechanism_arms_differ_in_what_is_removed_only():
    """An arm without the spike has another rate, size or number of steps than the one it is compared with."""
    arms = study("desk").arms
    for name in ("adam@1", "gd@2000"):
        whole = arms[name].describe()
        for ending, removed in (("no-spike", "spike"), ("no-spike-rescaled", "spike, rescaled")):
            assert arms[f"{name}/{ending}"].describe() == whole | {"removed": removed}
