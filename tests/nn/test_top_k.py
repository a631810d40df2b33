"""keep_top_k, TopK and TopKMLP against sorting by hand, ReLU and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.nn.top_k import TopK, TopKMLP, keep_top_k


def vectors(*shape, seed=0):
    """Standard normal numbers in float64: no ties."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_keeps_what_sorting_by_hand_keeps(k, seed):
    """Other entries than the k largest would be kept, or others competed with them."""
    z = vectors(3, 7, seed=seed)
    expected = torch.zeros_like(z)
    for row, out in zip(z, expected, strict=True):
        for place in sorted(range(7), key=lambda i: -row[i])[:k]:
            out[place] = row[place]
    assert torch.equal(keep_top_k(z, k), expected)
    assert torch.equal(keep_top_k(z.T, k, dim=0), expected.T)
    assert torch.equal(TopK(k)(z), keep_top_k(z, k).clamp(min=0))  # thresholding before or after ReLU is the same


def test_is_relu_from_the_size_on():
    """The dense arm of a comparison would not be an ordinary ReLU network."""
    z = vectors(4, 6)
    assert torch.equal(TopK(6)(z), z.relu())
    assert torch.equal(TopK(100)(z), z.relu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_never_keep_more_than_k(dtype):
    """The number of active neurons would exceed k where values coincide, as in low precision they do."""
    z = torch.ones(5, 40, dtype=dtype)
    assert ((TopK(3)(z) != 0).sum(1) == 3).all()


def test_gradient_flows_through_the_kept_entries_only():
    """A silenced neuron would be trained, or an active one not."""
    z = vectors(3, 8).requires_grad_()
    weights = vectors(3, 8, seed=1)
    (TopK(2)(z) * weights).sum().backward()
    assert torch.equal(z.grad, torch.where(TopK(2)(z) != 0, weights, 0.0))
    assert torch.autograd.gradcheck(TopK(2), (z.detach().requires_grad_(),))


def test_the_mlp_is_two_layers_around_it():
    """The block would compute something else than W_2 keep_k(relu(W_1 x + b_1)) + b_2, or draw from the global generator."""
    before = torch.get_rng_state()
    mlp = TopKMLP(4, 32, k=5, generator=torch.Generator().manual_seed(3)).double()
    assert torch.equal(torch.get_rng_state(), before)
    x = vectors(6, 4)
    hidden = keep_top_k((x @ mlp.enter.weight.T + mlp.enter.bias).relu(), 5)
    torch.testing.assert_close(mlp(x), hidden @ mlp.leave.weight.T + mlp.leave.bias)
    again = TopKMLP(4, 32, k=5, generator=torch.Generator().manual_seed(3)).double()
    assert torch.equal(again(x), mlp(x))
    assert [name for name, _ in TopKMLP(4, 8, 2, bias=False).named_parameters()] == ["enter.weight", "leave.weight"]


@pytest.mark.parametrize("make", [lambda: TopK(0), lambda: TopKMLP(4, 0, 1), lambda: keep_top_k(torch.ones(2), -1)])
def test_sizes_below_one_are_refused(make):
    """A layer that is always silent would be built."""
    with pytest.raises(InvalidInput, match="at least 1"):
        make()
