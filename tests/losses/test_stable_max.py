"""StableMax against the paper's rational form, softmax of the sign-log squash, and extreme gaps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.losses.stable_max import log_stablemax, stablemax_cross_entropy

logits = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6)


def _s(x: Tensor) -> Tensor:
    """The paper's s, entry by entry in Python floats."""
    return torch.tensor([v + 1 if v >= 0 else 1 / (1 - v) for v in x.tolist()], dtype=torch.float64)


def _random(seed: int, scale: float = 10.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(8, 5, generator=generator, dtype=torch.float64)
    return scores, torch.randint(0, 5, (8,), generator=generator)


@given(logits)
@settings(max_examples=50, deadline=None)
def test_equals_the_papers_rational_form(values: list[float]) -> None:
    """It would not be s(z_i) / sum_j s(z_j)."""
    z = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(log_stablemax(z).exp(), _s(z) / _s(z).sum(), rtol=1e-12, atol=1e-300)


@given(logits)
@settings(max_examples=50, deadline=None)
def test_equals_softmax_of_the_sign_log_squash(values: list[float]) -> None:
    """The paper's equivalence with softmax(g(z)) would not hold."""
    z = torch.tensor(values, dtype=torch.float64)
    squashed = torch.where(z >= 0, (1 + z.clamp(min=0)).log(), -(1 - z.clamp(max=0)).log())
    torch.testing.assert_close(log_stablemax(z).exp(), squashed.softmax(0), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_sums_to_one_along_the_given_axis(dim: int) -> None:
    """The axis argument would be ignored."""
    z = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = log_stablemax(z, dim=dim).exp().sum(dim)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)


def test_slope_at_zero_is_one_from_both_sides_and_at_zero() -> None:
    """Zero logits, as of a zero-initialised head, would get no gradient; s is once differentiable with s'(0) = 1."""
    for at in (-1e-9, 0.0, 1e-9):
        z = torch.tensor([[at, 0.0]], dtype=torch.float64, requires_grad=True)
        (from_loss,) = torch.autograd.grad(stablemax_cross_entropy(z, torch.tensor([0])), z)
        (from_log,) = torch.autograd.grad(-log_stablemax(z)[0, 0], z)
        for gradient in (from_loss, from_log):
            torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.5]], dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("upcast", [True, False])
def test_loss_and_gradient_equal_the_plain_formula(upcast: bool) -> None:
    """The memory-saving backward would differ from autograd through the formula."""
    scores, targets = _random(1)
    scores.requires_grad_()
    loss = stablemax_cross_entropy(scores, targets, upcast=upcast)
    plain = F.nll_loss(log_stablemax(scores), targets)
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    gradient, expected = (torch.autograd.grad(value, scores)[0] for value in (loss, plain))
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("gap", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("upcast", [True, False])
def test_never_collapses(gap: float, upcast: bool) -> None:
    """A fitted sample's loss or gradient would round to 0, which is what the loss is there to prevent."""
    scores = torch.tensor([[gap, 0.0, -gap]], requires_grad=True)
    loss = stablemax_cross_entropy(scores, torch.tensor([0]), upcast=upcast)
    (gradient,) = torch.autograd.grad(loss, scores)
    exact = torch.log1p((1 + 1 / (1 + torch.tensor(gap, dtype=torch.float64))) / (1 + gap))
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    assert (gradient != 0).all() and gradient[0, 0] < 0
    assert F.cross_entropy(scores, torch.tensor([0])) == 0  # softmax has collapsed at the same scores


def test_gradient_of_the_true_class_is_exact_in_float32() -> None:
    """1 - p_y in float32 would be 0 beside a gap of 1e9."""
    scores = torch.tensor([[1e9, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(stablemax_cross_entropy(scores, torch.tensor([0]), upcast=False), scores)
    torch.testing.assert_close(gradient[0, 0].item(), -1e-18, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient[0, 1].item(), 1e-9, rtol=1e-5, atol=0)


def test_type_of_the_result() -> None:
    """Half-precision scores would get a loss that underflows, or a loss in a type that the caller does not expect."""
    for given_type, expected in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert stablemax_cross_entropy(torch.zeros(2, 3, dtype=given_type), torch.tensor([0, 1])).dtype == expected


def test_keeps_nothing_but_the_scores_for_backward() -> None:
    """The loss would need several float64 copies of the scores during training."""
    scores, targets = _random(2)
    scores = scores.float().requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stablemax_cross_entropy(scores, targets)
    assert scores.untyped_storage().data_ptr() in kept
    assert sum(kept.values()) == scores.nbytes + targets.nbytes
