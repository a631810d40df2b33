"""What the study of tgt adds of its own: fair arms, shared teachers, what the teacher is asked about."""

from __future__ import annotations

import pytest
import torch

from assay.papers.tgt.study import ARMS, study
from assay.papers.tgt.training import METHODS, _exploration, distil, teachers
from assay.streams import Streams

TEACHERS = {"data": "digits(train=500, validation=100, test=200)", "latent": 4, "labeler_epochs": 40, "vae_epochs": 4}
SMALL = TEACHERS | {"labelled": 40, "width": 16, "steps": 5, "batch_size": 16, "lr": 1e-3, "teacher_width": 32}


def test_arms_share_everything_but_what_is_explored():
    """An arm has another student, budget or teacher, or a grid of another size."""
    for scale in ("smoke", "desk", "paper"):
        own = {"method", "noise", "sigma", "eta", "labelled"}
        arms = study(scale).arms.values()
        shared = [{k: v for k, v in arm.arguments.items() if k not in own | set(arm.tune)} for arm in arms]
        keys = set.intersection(*(set(s) for s in shared))
        assert keys >= {"data", "width", "steps", "batch_size", "teacher_width", "latent", "vae_epochs"}
        assert all(s[k] == shared[0][k] for s in shared for k in keys)
        assert {len(values) for arm in arms for values in arm.tune.values()} == {3}
    assert set(ARMS) == set(METHODS)


def test_teachers_know_more_than_chance_and_are_frozen_and_shared():
    """Students learn from noise, train their teachers, or each arm has teachers of its own."""
    streams = Streams("t", 0)
    found = teachers(streams, TEACHERS["data"], 32, 4, 40, 4)
    assert teachers(Streams("t", 0), TEACHERS["data"], 32, 4, 40, 4) is found
    assert not any(p.requires_grad for m in (found.labeler, found.vae) for p in m.parameters())
    before = [p.clone() for p in found.labeler.parameters()]
    metrics = distil(streams, method="gradient", eta=1.0, **SMALL).metrics
    assert metrics["teacher_accuracy"] > 0.6
    assert all(torch.equal(p, q) for p, q in zip(before, found.labeler.parameters(), strict=True))


def test_what_the_teacher_is_asked_about():
    """An arm's questions are another arm's."""
    found = teachers(Streams("t", 0), TEACHERS["data"], 32, 4, 40, 4)
    x = found.data.train.inputs[:8]

    def asked(method, **numbers):
        numbers = {"noise": 0.0, "sigma": 0.0, "eta": 0.0} | numbers
        explore = _exploration(method, found, **numbers, generator=torch.Generator().manual_seed(0))
        return explore(x, found.labeler, found.labeler)

    assert _exploration("distil", found, 1.0, 1.0, 1.0, torch.Generator()) is None
    assert torch.allclose(asked("random"), found.vae(x), atol=1e-6)
    assert (asked("input-noise", noise=0.5) - x).std().item() == pytest.approx(0.5, rel=0.15)
    rows = {tuple(row.flatten().tolist()) for row in found.data.train.inputs}
    assert all(tuple(row.flatten().tolist()) in rows for row in asked("all-inputs"))


def test_a_trial_reports_what_the_study_asks_for_and_tuning_no_test_metric():
    """A metric is missing, out of its range, or a tuning trial has seen the test split."""
    metrics = distil(Streams("t", 0), method="random", sigma=0.1, **SMALL).metrics
    shares = ("test_accuracy", "teacher_accuracy", "teacher_accuracy_reconstructed", "label_kept")
    assert all(0 <= metrics[name] <= 1 for name in shares) and 0 <= metrics["teacher_entropy"] < 2.31
    one_hot = distil(Streams("t", 0), method="one-hot", validation_only=True, **SMALL).metrics
    assert set(one_hot) == {"validation_score"}
