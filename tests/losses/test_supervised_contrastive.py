"""Supervised contrastive loss against its equation as loops, NT-Xent through cross-entropy, and limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.errors import InvalidInput
from assay.losses.supervised_contrastive import SupervisedContrastiveLoss, supervised_contrastive_loss


def _batch(seed: int, samples: int = 9, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    return features, torch.randint(0, classes, (samples,), generator=generator)


def _slow(features: Tensor, targets: Tensor, tau: float) -> list[float]:
    """Return eq. (2), one sample and one pair at a time."""
    z = [h / h.norm() for h in features]
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        total = sum(math.exp(float(z[i] @ z[a]) / tau) for a in others)
        positives = [p for p in others if targets[p] == targets[i]]
        terms = [-math.log(math.exp(float(z[i] @ z[p]) / tau) / total) for p in positives]
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return losses


@given(seed=st.integers(0, 10**6), tau=st.floats(0.1, 5.0), classes=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_equals_the_equation_pair_by_pair(seed: int, tau: float, classes: int) -> None:
    """Positives, the denominator or the mean over positives would be another than in the paper."""
    features, targets = _batch(seed, classes=classes)
    found = supervised_contrastive_loss(features, targets, tau, "none")
    assert found.tolist() == pytest.approx(_slow(features, targets, tau), rel=1e-9, abs=1e-12)


def test_two_views_of_each_image_are_nt_xent() -> None:
    """With images as classes it would not be SimCLR's loss: cross-entropy of each view's partner among all others."""
    features, _ = _batch(0, samples=10)
    z = F.normalize(features, dim=1)
    scores = (z @ z.T / 0.3).fill_diagonal_(-torch.inf)
    partner = torch.arange(10).roll(5)
    expected = F.cross_entropy(scores, partner)
    torch.testing.assert_close(SupervisedContrastiveLoss(0.3)(features, torch.arange(5).repeat(2)), expected)


def test_all_alike_costs_the_logarithm_of_the_others() -> None:
    """Collapsed features or a hot temperature would cost something else than guessing among B - 1 others."""
    features, targets = _batch(1)
    alike = supervised_contrastive_loss(torch.ones(9, 4), targets, 0.1, "none")
    hot = supervised_contrastive_loss(features, targets, 1e9, "none")
    torch.testing.assert_close(alike, torch.full((9,), math.log(8)))
    torch.testing.assert_close(hot, torch.full((9,), math.log(8), dtype=torch.float64))


def test_minimum_is_class_collapse_to_a_simplex() -> None:
    """Classes collapsed to a simplex would not be better than their neighbourhood (Graf et al., 2021)."""
    simplex = (torch.eye(3, dtype=torch.float64) - 1 / 3)[torch.arange(9) % 3].requires_grad_()
    targets = torch.arange(9) % 3
    value = supervised_contrastive_loss(simplex, targets, 0.5)
    (gradient,) = torch.autograd.grad(value, simplex)
    assert gradient.abs().max() < 1e-12
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        moved = simplex.detach() + 0.1 * torch.randn(9, 3, generator=generator, dtype=torch.float64)
        assert supervised_contrastive_loss(moved, targets, 0.5) > value


def test_a_class_of_one_sample_has_no_loss_but_repels() -> None:
    """A sample without a positive would give NaN, or vanish from the others' denominators."""
    features, _ = _batch(2, samples=3)
    features.requires_grad_()
    losses = supervised_contrastive_loss(features, torch.tensor([0, 0, 1]), reduction="none")
    assert losses[2] == 0 and (losses[:2] > 0).all()
    (gradient,) = torch.autograd.grad(losses.sum(), features)
    assert gradient.isfinite().all() and gradient[2].any()
    assert supervised_contrastive_loss(features[:1], torch.tensor([4])) == 0


@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 50.0))
@settings(max_examples=10, deadline=None)
def test_lengths_and_names_of_classes_do_not_count(seed: int, scale: float) -> None:
    """Features would be used unnormalised, or labels as numbers."""
    features, targets = _batch(seed)
    value = supervised_contrastive_loss(features, targets)
    torch.testing.assert_close(supervised_contrastive_loss(scale * features, 7 - 3 * targets), value)


@pytest.mark.parametrize(
    ("features", "targets", "options", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), {}, r"features must be floats \(B, D\)"),
        (torch.zeros(3, 2), torch.zeros(2).long(), {}, r"integer labels \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3), {}, r"torch.float32"),
        (torch.zeros(3, 2), torch.zeros(3).long(), {"temperature": 0.0}, r"above 0; got 0"),
        (torch.zeros(3, 2), torch.zeros(3).long(), {"reduction": "max"}, r"'max'"),
    ],
)
def test_refuses_bad_input(features: Tensor, targets: Tensor, options: dict[str, object], message: str) -> None:
    """A mistake would show only as a strange loss."""
    with pytest.raises(InvalidInput, match=message):
        supervised_contrastive_loss(features, targets, **options)  # type: ignore[arg-type]
