"""What the study of grokking-edge adds of its own: cross-entropy in a given type, and fair grids."""

from __future__ import annotations

import math
import re

import pytest
import torch

from assay.papers.grokking_edge.study import CrossEntropyIn, study


@pytest.mark.parametrize(("dtype", "threshold"), [("float16", 7.6), ("float32", 16.6), ("float64", 36.7)])
def test_gradient_vanishes_beyond_the_types_threshold(dtype: str, threshold: float) -> None:
    """The loss would not be computed in the type that it names: a fitted sample's gradient is 0 from log(2 / eps) on."""
    loss = CrossEntropyIn(dtype)
    assert math.log(2 / torch.finfo(getattr(torch, dtype)).eps) == pytest.approx(threshold, abs=0.1)
    for gap, vanishes in ((threshold - 1, False), (threshold + 1, True)):
        scores = torch.tensor([[gap, 0.0]], dtype=torch.float64, requires_grad=True)
        loss(scores, torch.tensor([0])).backward()
        assert bool(scores.grad[0, 0] == 0) is vanishes  # type: ignore[index]


def test_arms_differ_in_what_they_compare_only() -> None:
    """An arm would win by another table, network, optimizer option or number of tuning trials."""
    arms = study("desk").arms
    decay, perp, plain = (arms[name].but(tune={}).describe() for name in ("weight-decay", "perp-grad", "adamw"))
    assert perp.pop("transforms") == ["perp-grad"]
    # What the grids replace, and nothing else, differs between the optimizers.
    tuned = (re.sub(r"(lr|weight_decay)=[\d.]+", r"\1=tuned", d.pop("optimizer")) for d in (decay, perp))
    assert len(set(tuned)) == 1
    assert decay == perp
    assert plain.pop("epochs") == 10 * perp.pop("epochs")  # the baseline gets more, never less
    for description in (plain, perp):
        del description["evaluate_every"]
    del plain["optimizer"]
    assert plain == perp
    grids = [math.prod(len(v) for v in arms[name].tune.values()) for name in ("adamw", "weight-decay", "perp-grad")]  # type: ignore[attr-defined]
    assert grids == [9, 9, 9]
