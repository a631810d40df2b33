"""What the study of scole adds of its own: fair arms, equal updates, references that bound it."""

from __future__ import annotations

import pytest
import torch

from assay.papers.scole.study import study
from assay.papers.scole.training import _batches, _tasks, accumulate
from assay.streams import Streams

SMALL = {
    "data": "digits(train=400, validation=100, test=200)",
    "model": "mlp(width=32)",
    "order": "recurring",
    "num_tasks": 40,
    "classes_per_task": 2,
    "per_class": 20,
    "updates": 3,
    "batch_size": 20,
    "optimizer": "sgd",
    "lr": 0.3,
}


def test_arms_differ_in_what_they_are_named_for():
    """An arm has another budget, or a grid of another size."""
    for scale in ("smoke", "desk", "paper"):
        arms = study(scale).arms
        base = dict(arms["sgd"].arguments)
        changed = {n: {k for k, v in a.arguments.items() if base.get(k) != v} - {"lr"} for n, a in arms.items()}
        assert changed == {
            "sgd": set(),
            "masked": {"loss"},
            "momentum": {"optimizer"},
            "blocked": {"order"},
            "joint": {"order"},
            "unequal": {"exponent"},
            "unequal-random-replay": {"exponent", "replay"},
            "unequal-frequency-replay": {"exponent", "replay"},
        }
        assert len({len(arm.tune["lr"]) for arm in arms.values()}) == 1


def test_every_task_has_the_same_number_of_updates():
    """A pool that replay has made larger gets more of them, or a small one runs dry."""
    generator = torch.Generator().manual_seed(0)
    for size in (5, 40, 95):
        found = list(_batches(torch.arange(size), 4, 20, generator))
        assert len(found) == 4
        whole = torch.cat(found)[: min(size, 80)] if size >= 20 else found[0]
        assert len(whole.unique()) == len(whole)


def test_blocks_share_the_sequence_evenly():
    """The classical benchmark gets other tasks, fewer updates, or a class twice."""
    tasks = _tasks("blocked", 10, 50, 2, torch.ones(10), torch.Generator().manual_seed(0))
    blocks, counts = tasks.unique_consecutive(dim=0, return_counts=True)
    assert counts.tolist() == [10] * 5 and sorted(blocks.flatten().tolist()) == list(range(10))


def test_joint_training_bounds_recurring_tasks_from_above_and_blocks_from_below():
    """Tasks are not what their arm says: blocks must end at their last two classes of ten."""
    late = {
        o: accumulate(Streams("t", 0), **SMALL | {"order": o}).metrics["late"]
        for o in ("joint", "recurring", "blocked")
    }
    assert late["joint"] > late["recurring"] > late["blocked"]
    assert late["blocked"] < 0.4 < 0.75 < late["joint"]


def test_replay_and_masking_do_what_they_are_for():
    """Nothing is replayed or everything is; masking does not stop the forgetting of a step."""
    unequal = SMALL | {"exponent": 4.0, "num_tasks": 60}
    found = {r: accumulate(Streams("t", 0), **unequal, replay=r).metrics for r in (None, "random", "frequency")}
    replayed = {r: m["replayed_per_task"] for r, m in found.items()}
    assert replayed[None] == 0 < replayed["frequency"] < replayed["random"] <= 2
    plain, masked = (
        accumulate(Streams("t", 0), **SMALL | {"loss": loss}) for loss in ("cross-entropy", "masked-cross-entropy")
    )
    assert masked.metrics["forgotten"] < plain.metrics["forgotten"] / 2
    assert len(plain.series["accuracy"].values) == 41


def test_tuning_sees_validation_data_only():
    """A tuning trial reports a test metric."""
    assert set(accumulate(Streams("t", 0), **SMALL, validation_only=True).metrics) == {"validation_score"}


def test_divergence_is_a_result():
    """A rate that is far too high ends in a number."""
    with pytest.raises(FloatingPointError):
        accumulate(Streams("t", 0), **SMALL | {"lr": 1e38})
