"""Experiments as plain data: budgets, changes and tuning grids."""

from __future__ import annotations

import functools
import pickle

import pytest
import torch

from assay.errors import InvalidInput
from assay.lab.experiment import Experiment

BASE = Experiment(data="digits", model="mlp(width=8)", optimizer="adamw(lr=0.1, weight_decay=0.0)", epochs=2)


def test_the_description_holds_what_was_set_and_nothing_unused():
    """The key is made of it: an unused option that appears later must not move old keys."""
    described = BASE.describe()
    assert described["optimizer"] == "adamw(lr=0.1, weight_decay=0.0)"
    assert "loss" not in described and "seconds" not in described and "tune" not in described


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": None},
        {"samples": 100},
        {"epochs": -1},
        {"epochs": 0},
        {"batch_size": 0},
        {"evaluate_every": 0},
        {"checkpoint": "first"},
        {"tune": {"optimizer.lr": ()}},
    ],
)
def test_a_budget_or_setting_out_of_range_is_refused(bad):
    """Bad numbers must be one clear error before any training."""
    settings = {"data": "digits", "model": "mlp", "epochs": 2, **bad}
    with pytest.raises(InvalidInput):
        Experiment(**settings)


def test_a_new_budget_drops_the_old_one():
    """`but(seconds=1)` must not leave two budgets behind."""
    assert BASE.but(seconds=1.0).epochs is None
    assert BASE.but(loss="mse").epochs == 2


def test_tuning_visits_the_whole_grid():
    """The candidates are the product of the grid, with nothing else changed."""
    grid = {"optimizer.lr": (0.1, 0.2), "batch_size": (16, 32)}
    points = BASE.but(tune=grid).tuning()
    assert [dict(p.overrides) for p in points] == [
        {"optimizer.lr": lr, "batch_size": b} for lr in (0.1, 0.2) for b in (16, 32)
    ]
    final = points[-1].final()
    assert final.optimizer == "adamw(lr=0.2, weight_decay=0.0)" and final.batch_size == 32 and final.tuning() is None


def test_an_override_reaches_into_a_partial():
    """Grids must work for objects as they do for names."""
    experiment = BASE.but(optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    assert experiment.with_overrides({"optimizer.lr": 0.5}).optimizer.keywords == {"lr": 0.5}


@pytest.mark.parametrize("path", ["optimiser.lr", "loss.gamma", "transforms.eps"])
def test_an_override_of_nothing_is_refused(path):
    """A grid over a field that is not there would tune nothing and look tuned."""
    with pytest.raises(InvalidInput, match="tune"):
        BASE.with_overrides({path: 1})


def test_an_experiment_can_be_pickled():
    """Workers get arms by pickle."""
    assert pickle.loads(pickle.dumps(BASE)) == BASE
