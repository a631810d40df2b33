"""Focal loss against cross-entropy, its closed-form gradient, limits and the family's contrastive property."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.losses.focal import FocalLoss, focal_loss


def _random(seed: int, samples: int = 7, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    return scores, torch.randint(0, classes, (samples,), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gamma_zero_is_cross_entropy(reduction: str) -> None:
    """The loss would not contain cross-entropy as its limit."""
    scores, targets = _random(0)
    torch.testing.assert_close(
        focal_loss(scores, targets, 0.0, reduction), F.cross_entropy(scores, targets, reduction=reduction)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_equals_the_equation_in_probabilities(gamma: float) -> None:
    """The loss would not be -(1 - p)^gamma log p of the softmax probability p."""
    scores, targets = _random(1)
    exponentials = scores.exp()
    p = (exponentials / exponentials.sum(1, keepdim=True))[torch.arange(7), targets]
    expected = -((1 - p) ** gamma) * p.log()
    torch.testing.assert_close(focal_loss(scores, targets, gamma, "none"), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.0])
def test_gradient_is_the_closed_form(gamma: float) -> None:
    """Training would follow another slope than d/dz [-(1 - p)^gamma log p] = w (softmax(z) - e_y)."""
    scores, targets = _random(2)
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(focal_loss(scores, targets, gamma, "sum"), scores)
    softmax = scores.detach().softmax(1)
    p = softmax.gather(1, targets[:, None])
    weight = (1 - p) ** gamma - gamma * p * (1 - p) ** (gamma - 1) * p.log()
    torch.testing.assert_close(gradient, weight * (softmax - F.one_hot(targets, 5)), rtol=1e-10, atol=1e-13)


@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50), gamma=st.floats(0, 5))
@settings(max_examples=50, deadline=None)
def test_common_offset_changes_nothing(seed: int, shift: float, gamma: float) -> None:
    """The loss would depend on more than softmax probabilities."""
    scores, targets = _random(seed)
    torch.testing.assert_close(
        focal_loss(scores + shift, targets, gamma), focal_loss(scores, targets, gamma), rtol=1e-9, atol=1e-12
    )


@given(seed=st.integers(0, 10**6), gamma=st.floats(0, 5))
@settings(max_examples=50, deadline=None)
def test_contrastive_property(seed: int, gamma: float) -> None:
    """The paper's condition on the family would fail: evening out the wrong classes' scores must not raise the loss."""
    scores, targets = _random(seed)
    column = targets[:, None]
    others = (scores.sum(1, keepdim=True) - scores.gather(1, column)) / (scores.shape[1] - 1)
    even = others.expand_as(scores).scatter(1, column, scores.gather(1, column))
    before, after = focal_loss(scores, targets, gamma, "none"), focal_loss(even, targets, gamma, "none")
    assert (after <= before + 1e-12).all()


@pytest.mark.parametrize("gap", [6.0, 9.0, 12.0, 14.0])
def test_loses_no_more_digits_than_cross_entropy(gap: float) -> None:
    """1 - p would be a difference of nearly equal numbers; for small 1 - p the loss at gamma 1 is cross-entropy squared."""
    scores, targets = torch.tensor([[gap, 0.0]]), torch.tensor([0])
    error, cross_entropy_error = (
        abs(float(loss(scores, targets)) / float(loss(scores.double(), targets)) - 1)
        for loss in (FocalLoss(1.0), torch.nn.CrossEntropyLoss())
    )
    assert error <= 2.1 * cross_entropy_error + 1e-6


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 1.5])
def test_gradients_stay_finite_at_probability_one(gamma: float) -> None:
    """The infinite slope of (1 - p)^gamma at p = 1 would put NaN into the weights."""
    scores = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    (first,) = torch.autograd.grad(focal_loss(scores, torch.tensor([0]), gamma), scores, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), scores)
    assert torch.isfinite(first).all() and torch.isfinite(second).all()


@pytest.mark.parametrize("gamma", [-1.0, float("nan"), float("inf")])
def test_refuses_a_gamma_out_of_range(gamma: float) -> None:
    """A typing error in gamma would train with nonsense."""
    with pytest.raises(ValueError, match="gamma"):
        FocalLoss(gamma=gamma)
    with pytest.raises(ValueError, match="gamma"):
        focal_loss(*_random(0), gamma=gamma)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_takes_any_integer_labels(dtype: torch.dtype) -> None:
    """Labels stored in fewer bits would be refused."""
    scores, targets = _random(3)
    assert torch.equal(focal_loss(scores, targets.to(dtype)), focal_loss(scores, targets))


def test_messages_name_what_came_and_what_was_expected() -> None:
    """A user with a wrong label or shape could not tell what to change."""
    scores, targets = _random(4)
    with pytest.raises(ValueError, match=r"0\.\.4 for 5 classes; got values from -100 to -100"):
        focal_loss(scores, torch.full_like(targets, -100))
    with pytest.raises(ValueError, match=r"\(B,\) = \(7,\).*got \(7, 5\)"):
        focal_loss(scores, F.one_hot(targets, 5))
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none; got 'median'"):
        FocalLoss(reduction="median")
