"""What the study of boosted-training adds of its own: choice on validation data, switched-off units, frozen bodies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.data.dataset import Split
from assay.errors import InvalidInput
from assay.models.mlp import MLP
from assay.papers.boosted_training import study as module
from assay.papers.boosted_training.study import last_layers, study, tables
from assay.rules.gradient_boosting import GradientBoosting
from assay.streams import Streams

TABLES = {"data": ("wine",), "units": 8, "epochs": 3, "batch_size": 64}


def _arguments(arm: str) -> dict:
    found = dict(study("smoke").arms[arm].describe())
    for name in ("function", "tune"):
        found.pop(name, None)
    return found


@pytest.mark.parametrize("trainer", ["boosting", "adam", "sgd", "l-bfgs"])
def test_a_trial_repeats_and_leaves_the_global_generator(trainer):
    """Seeds would not repeat, or a trainer draw from the wrong generator."""
    before = torch.get_rng_state()
    candidates = module.CANDIDATES[trainer][:1]
    first, second = (tables(Streams("t", 0), trainer=trainer, candidates=candidates, **TABLES) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before) and first == second
    assert first["mean_error"] == first["wine_error"]


def test_settings_are_chosen_on_validation_data(monkeypatch):
    """The choice would look at test data, or keep a setting that diverged."""
    seen = []
    original = module._error

    def spy(network, split):
        seen.append(split.inputs.shape[0])
        return original(network, split)

    monkeypatch.setattr(module, "_error", spy)
    settings = [{"lr": 1e30, "weight_decay": 0.0}, {"lr": 0.03, "weight_decay": 0.0}]
    arguments = {**TABLES, "data": ("diabetes(train=100, validation=50, test=60)", "wine")}
    errors = tables(Streams("t", 0), trainer="sgd", candidates=settings, **arguments)
    assert seen[:6] == [50, 50, 60, 60, 60, 60], "two settings on validation data, then the best and three cuts on test"
    assert errors["diabetes_error"] < 2
    with pytest.raises(FloatingPointError, match="diverged on diabetes"):
        tables(Streams("t", 0), trainer="sgd", candidates=settings[:1], **arguments)


def test_weak_units_go_first():
    """A whole network would be cut at random, or the wrong way round."""
    network = MLP((3,), 2, width=4, depth=1, activation="sigmoid", generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[1.0, 0.1, -3.0, 0.0], [0.0, 0.1, 0.0, 0.2]]))
    kept = module._truncated(network, None, 2)
    assert kept.head.weight.abs().sum(0).gt(0).tolist() == [True, False, True, False]
    assert network.head.weight.abs().sum(0).gt(0).all(), "the network itself stays"


def test_boosting_loses_its_last_units():
    """Truncation would not be the earlier stage."""
    network = MLP((3,), 2, width=8, depth=1, activation="sigmoid", generator=torch.Generator().manual_seed(0))
    rule = GradientBoosting(network, step_units=2)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    rule.fit(x, (x[:, 0] > 0).long())
    torch.testing.assert_close(module._truncated(network, rule, 4)(x), rule.staged_scores(x)[2])


def test_error_is_of_its_kind():
    """Classes would be scored as numbers, or the other way round."""
    scores, x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.eye(2)
    network = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(scores.T)
    assert module._error(network, Split(x, torch.tensor([0, 0]))) == 0.5
    assert module._error(network, Split(x, torch.tensor([[1.0, 0.0], [0.0, 3.0]]))) == pytest.approx(1.0)


@pytest.mark.parametrize(("arm", "layers"), [("boosting", 2), ("adam", 2), ("random-blocks", 1), ("backprop", 3)])
def test_only_the_last_layers_are_trained_again(arm, layers, monkeypatch):
    """The body would move, or an arm train less than it says."""
    captured = {}
    original = module._error
    monkeypatch.setattr(
        module, "_error", lambda network, split: captured.update(net=network) or original(network, split)
    )
    arguments = _arguments(f"images/{arm}")
    body = {**arguments, "last": "kept"}
    last_layers(Streams("t", 0), **body)
    before = [p.detach().clone() for p in captured["net"].parameters()]
    last_layers(Streams("t", 0), **arguments)
    after = list(captured["net"].parameters())
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    if arm == "backprop":
        assert all(same)
    else:
        kept = 2  # weight and bias of the first layer
        assert all(same[:kept]) and not any(same[-2 * layers :])


def test_trainers_get_as_many_settings():
    """A trainer would be tuned better than another, or a hyper-parameter lack its source."""
    for scale in ("smoke", "desk", "paper"):
        assert study(scale).unsourced() == []
    arms = study("desk").arms
    assert len({len(arms[f"tables/{name}"].arguments["candidates"]) for name in module.CANDIDATES}) == 1
    assert len({len(arms[f"images/{name}"].tuning()) for name in module.DEEP}) == 1


def test_an_unknown_scale_is_refused():
    """A misspelt scale would fail with a KeyError."""
    with pytest.raises(InvalidInput, match="no scale 'huge'"):
        study("huge")
