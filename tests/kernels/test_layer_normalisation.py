from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.kernels import LayerNorm, layer_norm, layer_norm_reference
from assay.kernels.layer_normalisation.native import layer_norm_native, layer_norm_native_backward
from assay.testing._interpreter import interpreter


def normal(*shape, dtype=torch.float64, seed=0, scale=1.0, shift=0.0):
    """A tensor of normal numbers that wants a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return (shift + scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def error(found, exact):
    """The relative error in norm."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@settings(max_examples=40, deadline=None)
@given(
    leading=st.lists(st.integers(0, 4), max_size=3),
    normalized=st.lists(st.integers(1, 7), min_size=1, max_size=2),
    weighted=st.booleans(),
    biased=st.booleans(),
    eps=st.sampled_from([1e-12, 1e-5, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_definition(leading, normalized, weighted, biased, eps, seed):
    """Result or gradients of some shape, with or without weight and bias, would differ from the formula in float64."""
    x, weight, bias = (
        normal(*s, seed=seed + i) for i, s in enumerate([[*leading, *normalized], normalized, normalized])
    )
    given = x, tuple(normalized), weight if weighted else None, bias if biased else None, eps
    found, plain = layer_norm(*given), layer_norm_reference(*given)
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(plain, F.layer_norm(*given), rtol=1e-9, atol=1e-9)
    wanted = [x, *([weight] if weighted else []), *([bias] if biased else [])]
    upstream = normal(*found.shape, seed=seed + 3).detach()
    for a, b in zip(*(torch.autograd.grad(y, wanted, upstream) for y in (found, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", [None, torch.float32])
def test_half_precision_gradients_are_as_exact_as_the_type_allows(dtype, weight_dtype):
    """Statistics kept in half precision spoil the gradients, as F.layer_norm's on a CPU shows."""
    x = normal(4096, 64, dtype=dtype, shift=3.0)
    parameters = [normal(64, dtype=weight_dtype or dtype, seed=i) for i in (1, 2)]
    upstream = normal(4096, 64, dtype=dtype, seed=3).detach()
    exact = [t.detach().double().requires_grad_() for t in (x, *parameters)]
    expected = torch.autograd.grad(F.layer_norm(exact[0], (64,), *exact[1:]), exact, upstream.double())
    y = layer_norm(x, 64, *parameters)
    found = torch.autograd.grad(y, (x, *parameters), upstream)
    assert y.dtype == dtype and [g.dtype for g in found] == [t.dtype for t in (x, *parameters)]
    for a, e in zip(found, expected, strict=True):
        # Float32 sums over 4096 rows: a random walk of 4096 roundings.
        assert error(a, e) < torch.finfo(a.dtype).eps / 2 + 4096**0.5 * 2**-24
    if weight_dtype is None:
        theirs = torch.autograd.grad(F.layer_norm(x, (64,), *parameters), (x, *parameters), upstream)
        assert error(theirs[1], expected[1]) > 2 * error(found[1], expected[1])


def test_keeps_the_input_and_two_numbers_per_row():
    """Something else of the input's size would be kept for backward."""
    x, weight, bias, saved = *(normal(*s, dtype=torch.bfloat16) for s in ((64, 32), (32,), (32,))), []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer_norm(x, 32, weight, bias)
    others = [t for t in saved if t.untyped_storage().data_ptr() not in (x.data_ptr(), weight.data_ptr())]
    assert [(t.numel(), t.dtype) for t in others] == [(64, torch.float32)] * 2


def test_module_is_torchs():
    """The module would not take the place of torch.nn.LayerNorm."""
    x, theirs = normal(3, 5, dtype=torch.float32), torch.nn.LayerNorm(5)
    torch.nn.init.normal_(theirs.weight, generator=torch.Generator().manual_seed(0))
    ours = LayerNorm(5)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    assert LayerNorm(5, elementwise_affine=False)(x).shape == LayerNorm(5, bias=False)(x).shape == x.shape


def test_forward_mode_is_refused():
    """A derivative that the op lacks would come out as zero instead of an error."""
    x = normal(3, 5).detach()
    with pytest.raises(InvalidInput, match="layer_norm_reference"):
        torch.func.jvp(lambda a: layer_norm(a, 5), (x,), (x,))
    tangent = torch.func.jvp(lambda a: layer_norm_reference(a, 5), (x,), (torch.ones_like(x),))[1]
    assert tangent.abs().max() < 1e-12  # the norm does not depend on the input's mean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(3, 5, dtype=torch.int64)}, "floating point"),
        ({"input": torch.zeros(3, 4)}, r"\(\.\.\., 5\), not \(3, 4\)"),
        ({"weight": torch.zeros(4)}, "weight must have shape"),
        ({"bias": torch.zeros(1, 5)}, r"bias must have shape \(5,\), not \(1, 5\)"),
        ({"bias": torch.zeros(5, device="meta")}, "bias is on meta"),
        ({"eps": -1.0}, "eps must be finite and at least 0"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    """A wrong shape, type or option would give a wrong number or an error from the depths of torch."""
    arguments = {"input": torch.zeros(3, 5), "normalized_shape": (5,), "weight": torch.zeros(5), **change}
    with pytest.raises(InvalidInput, match=message):
        layer_norm(**arguments)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_triton_kernels_equal_pytorchs():
    """The kernels that a GPU runs would compute something else, in some type or width."""
    from assay.kernels.layer_normalisation.triton_kernel import layer_norm_triton, layer_norm_triton_backward

    with interpreter() as interpreted:
        for seed, (rows, columns) in enumerate([(7, 33), (3, 5), (2, 257), (0, 5)]):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                x, dy = (normal(rows, columns, dtype=dtype, seed=seed + i).detach() for i in range(2))
                w, b = (normal(columns, dtype=dtype, seed=seed + 2 + i).detach() for i in range(2))
                for weight, bias in ((w, b), (w, None), (None, None)):
                    y, mean, r = layer_norm_native(x, weight, bias, 1e-5)
                    found = interpreted(layer_norm_triton, x, weight, bias, 1e-5)
                    arguments = dy, x, mean, r, weight, (True, weight is not None, bias is not None)
                    expected = [y, mean, r, *layer_norm_native_backward(*arguments)]
                    found = [*found, *interpreted(layer_norm_triton_backward, *arguments)]
                    for a, e in zip(found, expected, strict=True):
                        assert (a is None) == (e is None)
                        if e is not None:
                            tolerance = 4 * torch.finfo(e.dtype).eps
                            torch.testing.assert_close(a, e, rtol=tolerance, atol=8 * tolerance)
