"""What the study of projection-head adds of its own: gradient descent on the population's loss, probes, fair arms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.data.dataset import Dataset, Split
from assay.nn.projection_heads import FixedReweightingHead, WithProjectionHead
from assay.papers.projection_head.study import _read_off, linear_network, pretrain, study
from assay.streams import Streams


def test_gradient_descent_ends_at_the_closed_form() -> None:
    """The study's run would not come near the theorem that it is to confirm: balanced layers, powers of one weight."""
    found = linear_network(Streams("t", 0), features=3, width=4, depth=2, decay=0.05, start=0.4, rate=0.05, steps=700)
    assert found["post_error"] < 1e-3 and found["pre_error"] < 0.02
    assert found["inequality_pre"] == pytest.approx(found["inequality_post"] / 2, rel=0.05)


def test_fine_labels_are_read_where_they_are() -> None:
    """Layers or labels would be exchanged: fine classes lie in a feature that the head takes away."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 4
    x = torch.stack([2.0 * (y % 2) - 1, 2.0 * (y // 2) - 1], dim=1) + 0.1 * torch.randn(120, 2, generator=generator)
    split = Split(x, y)
    model = WithProjectionHead(nn.Identity(), FixedReweightingHead(2))
    model.head.weight.copy_(torch.tensor([1.0, 0.0]))
    values = _read_off(model, Dataset("d", split, split, split, 4), torch.tensor([0, 1, 0, 1]), 80, (1e-4, 1e-2))
    assert values["fine_pre"] == values["coarse_pre"] == values["coarse_post"] == 1
    assert values["fine_post"] == pytest.approx(0.5, abs=0.1)
    assert values["rank_post"] == pytest.approx(1) and values["rank_pre"] > 1.9


def test_without_a_head_both_layers_are_one() -> None:
    """The baseline would have a hidden layer of its own, or the fixed head with kappa 1 differ from none."""
    arguments = study("smoke").arms["supervised-contrastive/none"].describe()
    del arguments["function"]
    arguments |= {"epochs": 1, "widths": (16, 8), "probe_decays": (1e-2,)}
    none = pretrain(Streams("t", 0), **arguments)
    fixed = pretrain(Streams("t", 0), **{**arguments, "head": "fixed", "kappa": 1.0})
    assert none["fine_pre"] == none["fine_post"] and none == fixed


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_differ_in_loss_and_head_only(scale: str) -> None:
    """A head would win by another encoder, budget or rate."""
    arms = study(scale).arms
    described = [arm.describe() for name, arm in arms.items() if not name.startswith("linear/")]
    for other in described[1:]:
        assert {key for key in other if other[key] != described[0][key]} <= {"loss", "head"}
