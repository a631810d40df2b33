"""The homeostatic loss against its closed form, finite differences and the limit of symmetric fields."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.errors import InvalidInput
from assay.losses.jacobian_symmetry import JacobianSymmetryLoss, jacobian_directions, jacobian_symmetry_loss

N = 6


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _closed_form(jacobian: Tensor) -> float:
    return float((jacobian - jacobian.T).square().sum() / (2 * len(jacobian)))


@given(seed=st.integers(0, 10_000), leak=st.floats(-2, 2))
@settings(max_examples=20, deadline=None)
def test_exact_value_is_the_closed_form_whatever_the_leak(seed: int, leak: float) -> None:
    """L would not be |J - J^T|^2 / (2 n) of the nonlinear field's Jacobian, averaged over samples."""
    weight, state = _randn(N, N, seed=seed), _randn(3, N, seed=seed + 1)

    def field(s: Tensor) -> Tensor:
        return torch.tanh(s @ weight.T) + leak * s

    jacobians = [torch.func.jacrev(lambda s: field(s[None])[0])(s) for s in state]
    expected = sum(map(_closed_form, jacobians)) / 3
    found = JacobianSymmetryLoss(samples=None)(field, state)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_estimate_is_unbiased() -> None:
    """The mean over draws would differ from the exact value by more than its standard error allows."""
    weight, state = _randn(N, N), _randn(1, N)
    draws = jacobian_directions(state, 4000, torch.Generator().manual_seed(1))
    each = torch.stack([jacobian_symmetry_loss(lambda s: s @ weight.T, state, d[None]) for d in draws[:400]])
    whole = jacobian_symmetry_loss(lambda s: s @ weight.T, state, draws)
    error = each.std() / 4000**0.5
    assert abs(float(whole) - _closed_form(weight)) < 4 * float(error)


def test_gradient_is_that_of_the_closed_form() -> None:
    """For a linear field the gradient by W is (2 / n) (W - W^T) from the exact loss; noise would be near it."""
    weight, state = _randn(N, N).requires_grad_(), _randn(2, N)
    JacobianSymmetryLoss(samples=None)(lambda s: s @ weight.T, state).backward()
    torch.testing.assert_close(weight.grad, 2 / N * (weight - weight.T).detach())


def test_gradcheck_through_both_products() -> None:
    """Gradients through a field whose Jacobian depends on the state would be wrong."""
    state, noise = _randn(2, 4), _randn(3, 2, 4, seed=1)

    def loss(weight: Tensor) -> Tensor:
        return jacobian_symmetry_loss(lambda s: torch.sin(s @ weight.T) * s, state, noise)

    assert torch.autograd.gradcheck(loss, _randn(4, 4, seed=2).requires_grad_())


def test_every_draw_is_zero_for_a_gradient_field() -> None:
    """A symmetric Jacobian would be pulled at by noise."""
    weight, state = _randn(N, N), _randn(2, N)
    energy = lambda s: torch.logsumexp(s @ weight.T, -1).sum()  # noqa: E731
    loss = JacobianSymmetryLoss(2, torch.Generator().manual_seed(0))(torch.func.grad(energy), state)
    assert abs(loss.item()) < 1e-12


def test_a_dict_of_groups_is_one_vector() -> None:
    """Groups of neurons would be normalised each on its own, or their cross terms be lost."""
    weight, state = _randn(5, 5), _randn(3, 5)
    groups = {"a": state[:, :2], "b": state[:, 2:].unflatten(1, (3, 1))}

    def field(s: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = torch.cat([s["a"], s["b"].flatten(1)], 1) @ weight.T
        return {"a": moved[:, :2], "b": moved[:, 2:].unflatten(1, (3, 1))}

    assert JacobianSymmetryLoss(None)(field, groups).item() == pytest.approx(_closed_form(weight))


def test_refuses_no_samples() -> None:
    """A mean over nothing would be NaN."""
    with pytest.raises(InvalidInput):
        JacobianSymmetryLoss(0)
