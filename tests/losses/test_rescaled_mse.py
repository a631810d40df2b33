"""Rescaled squared loss against torch's MSE, the equation written as loops, and its minimiser."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.losses.focal import focal_loss
from assay.losses.rescaled_mse import RescaledMSELoss, rescaled_mse_loss


def _random(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return scores, torch.randint(0, 5, (7,), generator=generator)


@pytest.mark.parametrize("target", [1.0, 15.0])
def test_without_weight_is_mse_on_scaled_one_hot(target: float) -> None:
    """The loss would not be the official script's mse_loss(z, M * one_hot)."""
    scores, targets = _random(0)
    expected = nn.MSELoss()(scores, target * F.one_hot(targets, 5).double())
    torch.testing.assert_close(rescaled_mse_loss(scores, targets, target), expected)


@given(seed=st.integers(0, 10**6), alpha=st.floats(0.1, 20), target=st.floats(0.1, 20))
@settings(max_examples=30, deadline=None)
def test_equals_the_equation_as_a_loop(seed: int, alpha: float, target: float) -> None:
    """The true class's weight or target would be applied in the wrong place."""
    scores, targets = _random(seed)
    for z, y, value in zip(scores, targets, rescaled_mse_loss(scores, targets, target, alpha, "none"), strict=True):
        expected = sum(alpha * (z[j] - target) ** 2 if j == y else z[j] ** 2 for j in range(5)) / 5
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_gradient_is_the_weighted_residual() -> None:
    """Training would not move towards M times one-hot."""
    scores, targets = _random(1)
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(rescaled_mse_loss(scores, targets, 4.0, 3.0, "sum"), scores)
    one_hot = F.one_hot(targets, 5).double()
    expected = 2 / 5 * (1 + 2 * one_hot) * (scores.detach() - 4 * one_hot)
    torch.testing.assert_close(gradient, expected)


def test_small_residuals_of_large_targets_keep_their_digits() -> None:
    """Expanding the square would drown a residual of 1e-3 beside a target of 15 in float32 rounding."""
    scores = torch.tensor([[15.001, 1e-3]])
    exact = rescaled_mse_loss(scores.double(), torch.tensor([0]))
    torch.testing.assert_close(rescaled_mse_loss(scores, torch.tensor([0])).double(), exact, rtol=1e-5, atol=0)


def test_depends_on_a_common_offset() -> None:
    """It would not differ from the losses of softmax, for which a common offset is invisible."""
    scores, targets = _random(2)
    assert not torch.isclose(rescaled_mse_loss(scores + 1, targets), rescaled_mse_loss(scores, targets))
    assert torch.isclose(focal_loss(scores + 1, targets), focal_loss(scores, targets))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_contrastive_property(seed: int) -> None:
    """The paper's condition on the family would fail: evening out the wrong classes' scores must not raise the loss."""
    scores, targets = _random(seed)
    column = targets[:, None]
    true = scores.gather(1, column)
    even = ((scores.sum(1, keepdim=True) - true) / 4).expand_as(scores).scatter(1, column, true)
    assert (
        rescaled_mse_loss(even, targets, reduction="none") <= rescaled_mse_loss(scores, targets, reduction="none")
    ).all()


@pytest.mark.parametrize("options", [{"target": 0.0}, {"alpha": -1.0}, {"target": float("nan")}, {"reduction": "max"}])
def test_refuses_options_out_of_range(options: dict[str, object]) -> None:
    """A wrong option would only show in a strange loss curve."""
    with pytest.raises(ValueError, match=next(iter(options))):
        RescaledMSELoss(**options)  # type: ignore[arg-type]
