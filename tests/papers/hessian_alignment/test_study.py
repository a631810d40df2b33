"""What the study of hessian-alignment adds of its own: arms that differ in the penalty only, tuned without the test."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.data import shifted_mnist
from assay.papers.hessian_alignment.study import PENALTIES, study, train, validate
from assay.streams import Streams


@pytest.fixture
def colours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are all alike, so that colour is all there is to learn."""
    images = torch.full((800, 1, 28, 28), 200, dtype=torch.uint8)
    digits = torch.arange(800) % 10
    monkeypatch.setattr(shifted_mnist, "_mnist_arrays", lambda: (images, digits, images, digits))


def _arguments(**changes: object) -> dict[str, object]:
    data = "colored-mnist(train=400, validation=200, test=200)"
    sizes = {"hidden": 4, "lr": 0.02, "steps": 60, "anneal": 20, "l2": 0.0}
    return {"data": data, "penalty": None, "weight": 1.0, "grey": False, **sizes, **changes}


def test_plain_training_follows_the_colour(colours_only: None) -> None:
    """The data or the metrics would not show the failure: by colour alone training is at 0.85 and the test at 0.1."""
    metrics = train(Streams("test", 0), **_arguments()).metrics
    assert metrics["train_accuracy"] == pytest.approx(0.85, abs=0.05)
    assert metrics["test_accuracy"] == pytest.approx(0.1, abs=0.07)
    assert metrics["test_accuracy"] == metrics["worst_accuracy"]
    assert metrics["validation_accuracy"] == pytest.approx(0.5, abs=0.12)


def test_grey_images_leave_nothing_to_learn(colours_only: None) -> None:
    """The upper reference would see colours."""
    metrics = train(Streams("test", 0), **_arguments(grey=True)).metrics
    assert metrics["test_accuracy"] == metrics["grey_accuracy"] == pytest.approx(0.5, abs=0.12)


def test_alignment_brings_the_domains_together(colours_only: None) -> None:
    """The penalty would not reach the network: the head's gradients must get closer than with plain training."""
    plain, aligned = (
        train(Streams("test", 0), **_arguments(**changes)).metrics["head_gradient_distance"]
        for changes in ({}, {"penalty": PENALTIES["hgp"], "weight": 1e3})
    )
    assert aligned < 0.5 * plain


def test_candidates_see_no_test_image(colours_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight would be chosen by the test domain."""
    before = validate(Streams("test", 0), **_arguments(steps=5))
    original = shifted_mnist._assembled

    def broken(name: str, parts: list[tuple[Tensor, Tensor]], *rest: object, **options: object) -> object:
        x, y = parts[-1]
        return original(name, [*parts[:-1], (torch.zeros_like(x), 1 - y)], *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shifted_mnist, "_assembled", broken)
    assert validate(Streams("test", 0), **_arguments(steps=5)) == before


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_differ_in_the_penalty_only(scale: str) -> None:
    """A penalty would win by another network, schedule or number of tuning trials."""
    arms = study(scale).arms
    assert set(arms) == {"erm", "grey", *PENALTIES}
    plain = [{k: v for k, v in arm.describe().items() if k not in ("penalty", "grey", "tune")} for arm in arms.values()]
    assert all(p == plain[0] for p in plain)
    assert len({len(arm.tuning()) for arm in arms.values()}) == 1  # type: ignore[attr-defined]
    candidate = arms["hgp"].tuning()[0]  # type: ignore[attr-defined]
    assert candidate.final().arguments["weight"] == candidate.overrides["weight"]
