"""What the study of collapse-mse adds of its own: free features, its network, and arms on equal terms."""

from __future__ import annotations

import pytest
import torch

from assay.models.mlp import MLP
from assay.nn.fixed_simplex import SimplexETFLinear
from assay.papers.collapse_mse.network import SimplexHeadMLP
from assay.papers.collapse_mse.study import study, unconstrained_features
from assay.streams import Streams


@pytest.mark.parametrize(("bias_decay", "start"), [(0.0, 1e-3), (0.5, 1.0)])
def test_free_features_end_at_the_minimum(bias_decay: float, start: float) -> None:
    """The study's run would not come near the theorem that it is to confirm, or stay at the saddle."""
    found = unconstrained_features(Streams("t", 0), 3, 2, 4, decay=0.02, bias_decay=bias_decay, start=start)
    assert abs(found["objective_gap"]) < 1e-9 and found["score_deviation"] < 1e-3


def test_trunks_of_both_heads_start_alike() -> None:
    """The fixed head would be compared from other initial weights, or be trained."""
    fixed = SimplexHeadMLP((6,), 4, width=(8, 4), generator=torch.Generator().manual_seed(0))
    learned = MLP((6,), 4, width=(8, 4), batch_norm=True, generator=torch.Generator().manual_seed(0))
    ours, theirs = fixed.state_dict(), learned.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if not key.startswith("head"))
    assert isinstance(fixed.head, SimplexETFLinear)
    assert "head.weight" not in dict(fixed.named_parameters())


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_heads_are_compared_on_equal_terms(scale: str) -> None:
    """A head would win by another network, budget or number of learning rates."""
    arms = study(scale).arms
    wide = arms["learned/wide"].describe()
    for name in ("learned/narrow", "simplex/wide", "simplex/narrow"):
        other = arms[name].describe()
        assert {key for key in wide if other.get(key) != wide[key]} == {"model"}
        brief = arms.get(f"{name}/brief")
        if brief:
            assert {k for k in other if brief.describe().get(k) != other[k]} <= {"epochs", "evaluate_every", "tune"}
