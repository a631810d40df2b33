from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.kernels import GroupNorm, group_norm, group_norm_reference
from assay.kernels.group_normalisation.native import group_norm_native, group_norm_native_backward
from assay.testing._interpreter import interpreter


def normal(*shape, dtype=torch.float64, seed=0, shift=0.0):
    """A tensor of normal numbers that wants a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return (shift + torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def error(found, exact):
    """The relative error in norm."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(0, 3),
    groups=st.integers(1, 3),
    depth=st.integers(1, 3),
    positions=st.lists(st.integers(1, 4), max_size=2),
    weighted=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_equals_torchs_in_float64(samples, groups, depth, positions, weighted, biased, seed):
    """Result or gradients of some shape, with or without weight and bias, would differ from PyTorch's."""
    channels = groups * depth
    if depth == 1 and all(p == 1 for p in positions):
        positions = [2]  # PyTorch refuses groups of one element
    x, weight, bias = (
        normal(*s, seed=seed + i) for i, s in enumerate([[samples, channels, *positions], [channels], [channels]])
    )
    given = x, groups, weight if weighted else None, bias if biased else None
    found, plain = group_norm(*given), group_norm_reference(*given)
    wanted = [x, *([weight] if weighted else []), *([bias] if biased else [])]
    upstream = normal(*found.shape, seed=seed + 3).detach()
    # PyTorch has no gradient of an empty batch, nor of a bias without a weight.
    comparable = samples and (weighted or not biased)
    results = [found, plain] + ([F.group_norm(*given)] if comparable else [])
    gradients = [torch.autograd.grad(y, wanted, upstream) for y in results]
    for y, each in zip(results[1:], gradients[1:], strict=True):
        torch.testing.assert_close(found, y, rtol=1e-9, atol=1e-9)
        for a, b in zip(gradients[0], each, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_as_exact_as_the_type_allows(dtype):
    """Rounding in between would spoil the gradients, as F.group_norm's on a CPU shows."""
    x = normal(64, 8, 30, dtype=dtype, shift=3.0)
    parameters = [normal(8, dtype=dtype, seed=i) for i in (1, 2)]
    upstream = normal(64, 8, 30, dtype=dtype, seed=3).detach()
    exact = [t.detach().double().requires_grad_() for t in (x, *parameters)]
    expected = torch.autograd.grad(F.group_norm(exact[0], 2, *exact[1:]), exact, upstream.double())
    found = torch.autograd.grad(group_norm(x, 2, *parameters), (x, *parameters), upstream)
    theirs = torch.autograd.grad(F.group_norm(x, 2, *parameters), (x, *parameters), upstream)
    for a, e in zip(found, expected, strict=True):
        # Float32 sums over 64 * 30 numbers: a random walk of as many roundings.
        assert error(a, e) < torch.finfo(dtype).eps / 2 + (64 * 30) ** 0.5 * 2**-24
    assert error(theirs[0], expected[0]) > 1.2 * error(found[0], expected[0])


def test_keeps_the_input_and_two_numbers_per_group():
    """Something else of the input's size would be kept for backward."""
    x, weight, bias, saved = *(normal(*s, dtype=torch.bfloat16) for s in ((4, 6, 5), (6,), (6,))), []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        group_norm(x, 3, weight, bias)
    others = [t for t in saved if t.untyped_storage().data_ptr() not in (x.data_ptr(), weight.data_ptr())]
    assert [(t.numel(), t.dtype) for t in others] == [(12, torch.float32)] * 2


def test_module_is_torchs():
    """The module would not take the place of torch.nn.GroupNorm."""
    x, theirs = normal(3, 6, 4, 4, dtype=torch.float32), torch.nn.GroupNorm(3, 6)
    torch.nn.init.normal_(theirs.weight, generator=torch.Generator().manual_seed(0))
    ours = GroupNorm(3, 6)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    assert GroupNorm(3, 6, affine=False)(x).shape == x.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(6)}, r"shape \(N, C, ...\), not \(6,\)"),
        ({"input": torch.zeros(2, 6, 3, dtype=torch.int64)}, "floating point"),
        ({"input": torch.zeros(2, 6, 0)}, "no elements"),
        ({"num_groups": 4}, "must divide the 6 channels, not be 4"),
        ({"num_groups": 0}, "must divide the 6 channels"),
        ({"weight": torch.zeros(5)}, r"weight must have shape \(6,\)"),
        ({"bias": torch.zeros(6, device="meta")}, "bias is on meta"),
        ({"eps": -1.0}, "eps must be finite and at least 0"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    """A wrong shape, type or option would give a wrong number or an error from the depths of torch."""
    arguments = {"input": torch.zeros(2, 6, 3), "num_groups": 2, "weight": torch.zeros(6), **change}
    with pytest.raises(InvalidInput, match=message):
        group_norm(**arguments)


def test_forward_mode_is_refused():
    """A derivative that the op lacks would come out as zero instead of an error."""
    x = normal(2, 6, 3).detach()
    with pytest.raises(InvalidInput, match="group_norm_reference"):
        torch.func.jvp(lambda a: group_norm(a, 2), (x,), (x,))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_triton_kernels_equal_pytorchs():
    """The kernels that a GPU runs would compute something else, in some type or size."""
    from assay.kernels.group_normalisation.triton_kernel import group_norm_triton, group_norm_triton_backward

    with interpreter() as interpreted:
        # The last group is longer than the longest block.
        for seed, (samples, channels, positions, groups) in enumerate([(3, 6, 7, 2), (0, 2, 3, 1), (1, 2, 4500, 1)]):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                x, dy = (normal(samples, channels, positions, dtype=dtype, seed=seed + i).detach() for i in range(2))
                w, b = (normal(channels, dtype=dtype, seed=seed + 2 + i).detach() for i in range(2))
                for weight, bias in ((w, b), (None, None)):
                    y, mean, r = group_norm_native(x, groups, weight, bias, 1e-5)
                    found = interpreted(group_norm_triton, x, groups, weight, bias, 1e-5)
                    arguments = dy, x, mean, r, weight, groups, [True, weight is not None, bias is not None]
                    expected = [y, mean, r, *group_norm_native_backward(*arguments)]
                    found = [*found, *interpreted(group_norm_triton_backward, *arguments)]
                    for a, e in zip(found, expected, strict=True):
                        assert (a is None) == (e is None)
                        if e is not None:
                            tolerance = 4 * torch.finfo(e.dtype).eps * max(positions / 64, 1)
                            torch.testing.assert_close(a, e, rtol=tolerance, atol=8 * tolerance)
