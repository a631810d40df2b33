"""Classifiers on the sphere: cosines, and class vectors that are moving averages."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.errors import InvalidInput
from assay.nn.spherical_heads import ClassMeanClassifier, NormalizedLinear


def test_scores_are_scaled_cosines() -> None:
    """Lengths of features or class vectors would count."""
    head = NormalizedLinear(4, 6, scale=7.0, generator=torch.Generator().manual_seed(0))
    h = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    expected = 7 * torch.stack([torch.cosine_similarity(h, w[None]) for w in head.weight], dim=1)
    assert torch.allclose(head(h), expected, atol=1e-6)
    head.weight.data.mul_(3)
    assert torch.allclose(head(100 * h), expected, atol=1e-6)
    assert isinstance(head, nn.Linear) and head.bias is None


def test_class_means_follow_the_recursion() -> None:
    """Averages would be taken otherwise than W <- m W + (1 - m) sum h, rows normalised, class by class."""
    head, generator = ClassMeanClassifier(3, 4, momentum=0.8), torch.Generator().manual_seed(0)
    W = torch.zeros(4, 3)
    for targets in ([0, 1, 1, 2], [2, 2, 0, 1], [1, 1, 1, 1]):
        h = torch.randn(4, 3, generator=generator)
        scores = head(h, torch.tensor(targets))
        for k in range(4):
            row = 0.8 * W[k] + 0.2 * sum((h[i] / h[i].norm() for i in range(4) if targets[i] == k), torch.zeros(3))
            W[k] = row / row.norm() if row.any() else row
        assert torch.allclose(head.weight, W, atol=1e-6)
        assert torch.allclose(scores, 10 * F.normalize(h, dim=1) @ W.T, atol=1e-5)  # after taking in the batch
    assert not head.weight[3].any()


def test_one_hot_features_give_the_identity() -> None:
    """Collapsed features would not be their own class vectors."""
    head = ClassMeanClassifier(5, 5)
    for _ in range(3):
        head(3 * torch.eye(5), torch.arange(5))
    assert torch.equal(head.weight, torch.eye(5))


def test_means_move_in_training_with_targets_only_and_pass_no_gradient() -> None:
    """Evaluation would change the classifier, or features would be trained through the averages."""
    head = ClassMeanClassifier(3, 2)
    h, y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.tensor([0, 1, 0, 1])
    first = head(h, y)
    second = head(h, y)  # a second pass before backward leaves the first one's graph whole
    (first.sum() + second.sum()).backward()
    assert h.grad is not None and not head.weight.requires_grad and not list(head.parameters())
    before = head.weight.clone()
    head(h)
    head.eval()(h, 1 - y)
    assert torch.equal(head.weight, before)
    assert set(head.state_dict()) == {"weight"}


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"out_features": 0}, {"momentum": 1.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    """Scores would be constant, or averages would never move."""
    with pytest.raises(InvalidInput, match=r"momentum|expected"):
        ClassMeanClassifier(**({"in_features": 3, "out_features": 2} | wrong))  # type: ignore[arg-type]


def test_targets_that_do_not_fit_are_refused() -> None:
    """Rows would be added to the wrong classes."""
    with pytest.raises(InvalidInput, match="one target per feature vector"):
        ClassMeanClassifier(3, 2)(torch.ones(4, 3), torch.zeros(3, dtype=torch.long))
