"""What the study of generalized-collapse adds of its own: cross-entropy on the sphere, its network, and fair arms."""

from __future__ import annotations

import pytest
import torch

from assay.errors import InvalidInput
from assay.nn.spherical_heads import ClassMeanClassifier
from assay.papers.generalized_collapse.network import FewFeatures, WithTargets
from assay.papers.generalized_collapse.study import sphere, study
from assay.streams import Streams


def test_a_simplex_where_there_is_room_whatever_the_temperature() -> None:
    """The search on the sphere would not end where theory has it: with K = d + 1 a simplex, its loss in closed form."""
    for scale in (1.0, 30.0):
        found = sphere(Streams("t", 0), 4, 2, 3, scale, restarts=1)
        gap = torch.tensor(-scale * 4 / 3, dtype=torch.float64)
        assert found["log_loss"] == pytest.approx((3 * gap.exp()).log1p().log().item(), rel=1e-6)
        assert found["rho_ratio"] == pytest.approx(1, abs=1e-4)
        assert found["gnc1"] < 1e-6 and found["gnc3"] < 1e-6


def test_class_means_learn_from_targets_in_training_only() -> None:
    """The classifier would stay empty, or evaluation would move it."""
    model = FewFeatures((2, 3), 4, features=3, head="class-means", width=8)
    rule = WithTargets(model)
    rule.backward(torch.randn(8, 2, 3), torch.arange(8) % 4)
    assert isinstance(model.head, ClassMeanClassifier)
    before = model.head.weight.clone()
    assert torch.allclose(before.norm(dim=1), torch.ones(4))
    assert rule.predict(torch.randn(5, 2, 3)).shape == (5, 4) and torch.equal(model.head.weight, before)
    assert rule.head() is model.head
    with pytest.raises(InvalidInput, match="'mean'"):
        FewFeatures((2, 3), 4, features=3, head="mean")


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_classifiers_are_compared_on_equal_terms(scale: str) -> None:
    """A classifier would win by another network, budget or number of learning rates."""
    arms = study(scale).arms
    learned = arms["learned"].describe()
    for name in ("class-means", "linear", "learned/s=3"):
        other = arms[name].describe()
        assert {key for key in learned if other.get(key) != learned[key]} <= {"model", "rule"}
    one = arms["learned/one-epoch"].describe()
    assert one["epochs"] == 1 and {one[key] == learned[key] for key in ("data", "model", "schedule", "optimizer")} == {
        True
    }
