"""What the study of target-surrogates adds of its own: honest counting, the synthetic problem, and equal budgets."""

from __future__ import annotations

import pytest
import torch

from assay.lab.plan import candidates
from assay.lab.tuned_call import TunedCall
from assay.papers.target_surrogates.study import study
from assay.papers.target_surrogates.training import METHODS, factorisation, minimise
from assay.streams import Streams

DATA = "digits(train=120, validation=10, test=60)"
TINY = {"data": DATA, "model": "linear", "queries": 6, "batch_size": 40, "goal": 0.0}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_the_loss_and_pays_one_backward_pass_per_query(method: str) -> None:
    """An optimizer would get more gradients than its budget, or not be wired to the model."""
    lr = {"surrogate": 2.0, "sgd-armijo": 1.0}.get(method, 0.05)
    record = minimise(Streams("t", 0), method=method, lr=lr, **TINY)  # type: ignore[arg-type]
    values = record.series["train_loss"].values
    assert record.series["train_loss"].steps[-1] == 6 and values[-1] == record.metrics["train_loss"] < values[0]
    assert record.metrics["backwards"] == 6
    assert record.metrics["forwards"] == 6 or method in ("surrogate", "sgd-armijo")


def test_methods_start_at_the_same_loss_and_tuning_sees_no_test_data() -> None:
    """Arms would not be paired, or step sizes be chosen on test data."""
    starts = [
        minimise(Streams("t", 1), method=method, lr=0.01, **TINY).series["train_loss"].values[0]  # type: ignore[arg-type]
        for method in ("sgd", "adamw", "surrogate")
    ]
    assert len(set(starts)) == 1
    record = minimise(Streams("t", 1), method="sgd", lr=0.01, validation_only=True, **TINY)  # type: ignore[arg-type]
    assert set(record.metrics) == {"validation_score"} and record.metrics["validation_score"] < 0


def test_on_a_full_batch_with_a_safe_eta_the_recorded_loss_falls_all_the_time() -> None:
    """The judged quantity would miss a rise between two queries: it must be negative, and the smallest fall."""
    full = {**TINY, "batch_size": None, "inner_steps": 3}
    record = minimise(Streams("t", 0), method="surrogate", lr=2.0, **full)  # type: ignore[arg-type]
    losses = torch.tensor(record.series["train_loss"].values, dtype=torch.float64)
    assert len(losses) == 7 and record.metrics["largest_increase"] == float(losses.diff().max()) < 0


def test_queries_to_the_goal_are_those_of_the_first_loss_below_it() -> None:
    """An arm would be credited with a later rise, with a query too few, or with a goal that it never reached."""
    losses = minimise(Streams("t", 0), method="surrogate", lr=2.0, **TINY).series["train_loss"].values  # type: ignore[arg-type]
    for goal, queries in ((losses[3], 3), (losses[3] - 1e-6, 4), (losses[0], 0), (0.0, 6)):
        record = minimise(Streams("t", 0), method="surrogate", lr=2.0, **{**TINY, "goal": goal})  # type: ignore[arg-type]
        assert record.metrics["queries_to_goal"] == queries


def test_the_synthetic_problem_is_the_papers() -> None:
    """Targets would not be linear in the inputs, or the map not be badly conditioned."""
    split, model = factorisation(50, torch.Generator().manual_seed(0))
    A = torch.linalg.lstsq(split.inputs, split.targets).solution.T
    torch.testing.assert_close(split.inputs @ A.T, split.targets, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(split.targets[:, -1], torch.zeros(50), rtol=0, atol=1e-8)
    assert (
        A.min() + 1e-5 > 0
        and A[0].max() <= 1 + 1e-5
        and [tuple(p.shape) for p in model.parameters()] == [(10, 6), (10, 10)]
    )


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_of_a_task_have_the_same_budget_and_number_of_candidates(scale: str) -> None:
    """An arm would win by more queries, other data or a longer grid."""
    made = study(scale)
    assert not made.unsourced()
    tuned = {name: arm for name, arm in made.arms.items() if isinstance(arm, TunedCall)}
    assert all("/safe-" in name or "/fixed-" in name for name in made.arms.keys() - tuned.keys())
    assert len({len(candidates(arm)) for arm in tuned.values()}) == 1
    for task in ("mnist", "full", "cifar10", "factorisation"):
        arms = {n: a for n, a in tuned.items() if n.startswith(f"{task}/") and not n.endswith("equal-passes")}
        budgets = {(a.arguments["data"], a.arguments["queries"], a.arguments["batch_size"]) for a in arms.values()}  # type: ignore[attr-defined]
        assert len(budgets) == 1 and {f"{task}/sgd", f"{task}/adamw"} < set(arms)


def test_unknown_methods_and_models_are_refused() -> None:
    """A misspelt arm would run something else."""
    with pytest.raises(ValueError, match="method must be one of"):
        minimise(Streams("t", 0), method="adam", lr=0.1, **TINY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'linear' or 'mlp'"):
        minimise(Streams("t", 0), method="sgd", lr=0.1, **{**TINY, "model": "cnn"})  # type: ignore[arg-type]
