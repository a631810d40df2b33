"""The comparison of optimizers: equal budgets in gradients, Muon where it belongs, scores from the trials."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.comparisons.optimizers.figures import figures, scores, times
from assay.comparisons.optimizers.study import METHODS, TARGETS, study
from assay.comparisons.optimizers.training import MuonWithAdamW, train
from assay.models.mlp import MLP
from assay.models.transformer_lm import TransformerLM
from assay.streams import Streams

TASK = {
    "data": "digits(train=160, validation=40, test=40)",
    "model": "mlp(width=8, depth=1)",
    "passes": 2,
    "batch_size": 16,
    "evaluations": 4,
}


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"optimizer": "sgd"}, 20),
        ({"optimizer": "sgd", "around": "sam(rho=0.05)"}, 10),
        ({"optimizer": "sgd", "around": "target-surrogate(inner_steps=2)"}, 10),
        ({"optimizer": "adagrad", "batch_test": "norm-test(eta=1000000.0)"}, 10),
        ({"optimizer": "sgd", "around": "gradient-noise(eta=0.01)"}, 20),
    ],
)
def test_the_budget_counts_gradients(options, steps, monkeypatch):
    """An optimizer that needs two passes per step would train twice as long as the others."""
    made = []
    monkeypatch.setattr("assay.comparisons.optimizers.training._rate", lambda share: made.append(share) or 1.0)
    record = train(Streams("test", 0), learning_rate=0.1, **TASK, **options)
    assert len(made) == steps
    assert record.resources["samples"] == 320
    assert record.status == "done" and record.series["validation_loss"].steps[-1] == pytest.approx(2)


def test_a_second_order_step_is_charged_for_its_curvature_and_its_trials():
    """A step with one trial costs three gradients per sample: at the point, one by one for Fisher, at the trial."""
    record = train(Streams("test", 0), optimizer="gradient-normalized-newton(max_trials=1)", learning_rate=1.0, **TASK)
    assert record.status == "done" and record.resources["samples"] == 7 * 3 * 16


def test_tuning_looks_at_no_test_data():
    """A rate would be chosen by what it is judged on."""
    record = train(Streams("test", 0), optimizer="sgd", learning_rate=0.1, validation_only=True, **TASK)
    assert not any(name.startswith("test") for name in record.metrics)


def test_muon_takes_the_inner_matrices_only():
    """First and last layer and biases are AdamW's, as Muon's authors have it."""
    model = MLP((6,), 3, width=4, depth=3)
    muon = MuonWithAdamW(model.named_parameters(), lr=0.01)
    matrices = {id(p) for p in muon.parts[1].param_groups[0]["params"]}
    assert matrices == {id(model.block2[0].weight), id(model.block3[0].weight)}
    twins = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    torch_muon = torch.optim.Muon([twins[2], twins[4]], lr=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([twins[i] for i in (0, 1, 3, 5, 6, 7)], lr=0.01)
    for p, twin in zip(model.parameters(), twins, strict=True):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
        twin.grad = p.grad.clone()
    for optimizer in (muon, torch_muon, adamw):
        optimizer.step()
    for p, twin in zip(model.parameters(), twins, strict=True):
        assert torch.equal(p.detach(), twin.detach())


def test_muon_leaves_every_embedding_to_adamw():
    """The transformer's second parameter is its position embedding, a matrix like any other by its shape."""
    model = TransformerLM((8,), 11, width=8, depth=1, heads=2)
    muon = MuonWithAdamW(model.named_parameters(), lr=0.01)
    matrices = {id(p) for p in muon.parts[1].param_groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in matrices}
    assert names and all(name.startswith("block") for name in names)


def test_a_forward_pass_alone_is_charged_a_third(monkeypatch):
    """A rate at which every inner step is searched would be charged as if each trial had a gradient."""
    monkeypatch.setattr("assay.comparisons.optimizers.training._rate", lambda share: 1.0)
    forwards = []

    def count(module, inputs, outputs):
        if isinstance(module, MLP) and module.training:
            forwards.append(len(outputs))

    options = {"optimizer": "armijo-descent", "around": "target-surrogate(eta=8.0, inner_steps=3)"}
    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        record = train(Streams("test", 0), learning_rate=30.0, **{**TASK, "passes": 0.05}, **options)
    finally:
        handle.remove()
    # one step on 16 samples, whose three inner steps have a gradient each
    assert set(forwards) == {16} and len(forwards) > 6
    assert record.resources["samples"] == pytest.approx(16 * (3 + (len(forwards) - 3) / 3))


def _trial(arm: str, seed: int, losses: list[float], status: str = "done") -> dict:
    series = {"validation_loss": {"steps": [1.0, 2.0, 3.0], "values": losses}}
    return {
        "arm": arm,
        "seed": seed,
        "status": status,
        "stage": "final",
        "metrics": {"test_loss": losses[-1]},
        "resources": {},
        "series": series,
    }


def test_times_and_scores_come_from_the_curves():
    """A method that never got there, or diverged after, would be scored as fast."""
    target = TARGETS["digits-mlp"]
    low, high = target / 2, target * 2
    trials = [
        _trial("digits-mlp/adamw", 0, [high, low, low]),
        _trial("digits-mlp/sgd", 0, [high, high, high]),
        _trial("digits-mlp/lamb", 0, [low, low, low]),
        _trial("digits-mlp/lars", 0, [low, low, low], status="diverged"),
    ]
    reached = {method: row["digits-mlp, 0"] for method, row in times(trials).items()}
    assert reached == {"adamw": 2.0, "sgd": math.inf, "lamb": 1.0, "lars": math.inf}
    # ratios 1 and 2 with tau up to 4: areas 1 and 2 / 3
    found = {method: (score, share) for method, score, share in scores(trials)}
    assert found["lamb"] == (1.0, 1.0) and found["adamw"] == (pytest.approx(2 / 3), 1.0) and found["sgd"] == (0.0, 0.0)
    drawn = figures([*trials, *({**t, "seed": 1} for t in trials)])
    assert set(drawn) == {"test-loss", "profiles"}


def test_every_method_has_as_many_candidates():
    """One method would be tuned better than another."""
    assert {len(method.rates) for method in METHODS.values()} == {5}
    assert {len(arm.tuning()) for arm in study("desk").arms.values()} == {5}
