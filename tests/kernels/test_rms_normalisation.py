from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from assay.errors import InvalidInput
from assay.kernels import RMSNorm, rms_norm, rms_norm_reference
from assay.kernels.rms_normalisation.blocked import rms_norm_blocked, rms_norm_blocked_backward
from assay.testing._interpreter import interpreter


def normal(*shape, dtype=torch.float64, seed=0, scale=1.0):
    """A tensor of normal numbers that wants a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def error(found, exact):
    """The relative error in norm."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@settings(max_examples=40, deadline=None)
@given(
    leading=st.lists(st.integers(0, 4), max_size=3),
    normalized=st.lists(st.integers(1, 7), min_size=1, max_size=2),
    weighted=st.booleans(),
    eps=st.sampled_from([None, 0.0, 1e-6, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_equals_torch(leading, normalized, weighted, eps, seed):
    """Result or gradients of some shape would differ from F.rms_norm in float64."""
    x, weight = normal(*leading, *normalized, seed=seed), normal(*normalized, seed=seed + 1) if weighted else None
    found, expected = (f(x, tuple(normalized), weight, eps) for f in (rms_norm, F.rms_norm))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted, upstream = [x, *([weight] if weighted else [])], normal(*found.shape, seed=seed + 2).detach()
    ours, theirs = (torch.autograd.grad(y, wanted, upstream) for y in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "offset"), [("llama", 0.0), ("gemma", 1.0)])
def test_rounds_as_the_models_do(name, offset, dtype):
    """A patched model would round elsewhere than Hugging Face's, and give other losses."""
    module = {"llama": LlamaRMSNorm, "gemma": GemmaRMSNorm}[name](67, eps=1e-6).to(dtype)
    x, weight = normal(513, 67, dtype=dtype), normal(67, dtype=dtype, scale=0.3)
    with torch.no_grad():
        module.weight.copy_(weight)
    found, expected = rms_norm(x, 67, weight, 1e-6, offset=offset, casting=name), module(x)
    assert found.dtype == expected.dtype
    assert (found == expected).float().mean() > (0.98 if dtype != torch.float32 else 0.3)
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("casting", ["llama", "gemma", "none"])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_result_types_are_those_of_the_models(casting, weight_dtype):
    """A float32 weight in a bfloat16 model would change the type of the residual stream, or not, unlike in the model."""
    x, weight = normal(5, 8, dtype=torch.bfloat16), normal(8, dtype=weight_dtype)
    y = rms_norm(x, 8, weight, 1e-6, casting=casting)
    model = {"llama": LlamaRMSNorm, "gemma": GemmaRMSNorm, "none": LlamaRMSNorm}[casting](8).to(weight_dtype)
    assert y.dtype == model(x).dtype == rms_norm_reference(x, 8, weight, casting=casting).dtype
    dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.dtype == x.dtype and dw.dtype == weight.dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_as_exact_as_the_type_allows(dtype):
    """Intermediates rounded to half precision would spoil the gradients; eager PyTorch's weight gradient shows it."""
    x, weight, upstream = normal(4096, 64, dtype=dtype), normal(64, dtype=dtype, seed=1), normal(4096, 64, seed=2)
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    expected = torch.autograd.grad(
        F.rms_norm(exact[0], (64,), exact[1], 1e-6), exact, upstream.detach().to(dtype).double()
    )
    found = torch.autograd.grad(rms_norm(x, 64, weight, 1e-6), (x, weight), upstream.detach().to(dtype))
    for a, e in zip(found, expected, strict=True):
        assert error(a, e) < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("casting", ["llama", "gemma", "none"])
def test_large_float16_does_not_overflow(casting):
    """The square of 300 is infinite in float16: the result would silently be zero."""
    x = torch.tensor([[3e4, -3e4, 1e4, 2e4]], dtype=torch.float16)
    torch.testing.assert_close(rms_norm(x, 4, None, 1e-6, casting=casting), F.rms_norm(x, (4,)), rtol=5e-3, atol=0)


def test_keeps_the_input_and_one_number_per_row():
    """Something else of the input's size would be kept for backward: the memory savings would be gone."""
    x, weight, saved = normal(64, 32, dtype=torch.bfloat16), normal(32, dtype=torch.bfloat16), []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rms_norm(x, 32, weight)
    others = [t for t in saved if t.untyped_storage().data_ptr() not in (x.data_ptr(), weight.data_ptr())]
    assert [t.numel() for t in others] == [64]


def test_many_blocks_are_one(monkeypatch):
    """Rows at the border of two blocks, or a last block that is shorter, would come out wrong."""
    x, weight, upstream = normal(11, 6).detach(), normal(6).detach(), normal(11, 6, seed=1).detach()
    whole = rms_norm_blocked(x, weight, 1e-6, 1.0, "llama")
    gradients = rms_norm_blocked_backward(upstream, x, whole[1], weight, 1.0, (True, True))
    short = [slice(0, 4), slice(4, 8), slice(8, 11)]
    monkeypatch.setattr("assay.kernels.rms_normalisation.blocked.row_blocks", lambda *_: iter(short))
    parts = rms_norm_blocked(x, weight, 1e-6, 1.0, "llama")
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(
        rms_norm_blocked_backward(upstream, x, whole[1], weight, 1.0, (True, True)), gradients, strict=True
    ):
        torch.testing.assert_close(a, b)


def test_module_is_torchs_with_two_options_more():
    """The module would not take the place of torch.nn.RMSNorm, or Gemma's offset would not begin at a scale of 1."""
    x = normal(3, 5, dtype=torch.float32)
    ours, theirs = RMSNorm(5, eps=1e-6, casting="gemma"), torch.nn.RMSNorm(5, eps=1e-6)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    gemma = RMSNorm((5,), offset=1.0, casting="gemma")
    assert torch.equal(gemma.weight, torch.zeros(5)) and "offset=1.0" in repr(gemma)
    torch.testing.assert_close(gemma(x), F.rms_norm(x, (5,)))
    assert RMSNorm(5, elementwise_affine=False)(x).shape == x.shape


def test_forward_mode_and_func_are_refused():
    """A derivative that the op lacks would come out as zero instead of an error."""
    x = normal(3, 5).detach()
    with pytest.raises(InvalidInput, match="rms_norm_reference"):
        torch.func.jvp(lambda a: rms_norm(a, 5), (x,), (x,))
    tangent = torch.func.jvp(lambda a: rms_norm_reference(a, 5), (x,), (x,))[1]
    assert tangent.abs().max() < 1e-6  # the norm does not depend on the input's length


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(3, 5, dtype=torch.int64)}, "floating point"),
        ({"input": torch.zeros(3, 4)}, r"\(\.\.\., 5\), not \(3, 4\)"),
        ({"input": torch.zeros(())}, "must have shape"),
        ({"normalized_shape": ()}, "at least one"),
        ({"weight": torch.zeros(4)}, r"weight must have shape \(5,\), not \(4,\)"),
        ({"weight": torch.zeros(5, dtype=torch.int64)}, "weight must be floating point"),
        ({"weight": torch.zeros(5, device="meta")}, "weight is on meta"),
        ({"eps": -1e-6}, "eps must be finite and at least 0"),
        ({"eps": float("nan")}, "eps must be"),
        ({"offset": float("inf")}, "offset must be finite"),
        ({"casting": "qwen"}, "llama, gemma, none"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    """A wrong shape, type or option would give a wrong number or an error from the depths of torch."""
    arguments = {"input": torch.zeros(3, 5), "normalized_shape": (5,), "weight": torch.zeros(5), **change}
    with pytest.raises(InvalidInput, match=message):
        rms_norm(**arguments)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_triton_kernels_equal_the_blocks():
    """The kernels that a GPU runs would compute something else, in some type, casting or width."""
    from assay.kernels.rms_normalisation.triton_kernel import rms_norm_triton, rms_norm_triton_backward

    with interpreter() as interpreted:
        for seed, (rows, columns) in enumerate([(7, 33), (3, 1), (2, 257), (0, 5)]):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                casting, offset = ("llama", "gemma", "none")[seed % 3], float(seed % 2)
                x, w, dy = (
                    normal(*s, dtype=dtype, seed=seed).detach() for s in ((rows, columns), (columns,), (rows, columns))
                )
                for weight, upstream in ((w, dy), (None, dy[:, :1].expand(rows, columns))):
                    y, r = rms_norm_blocked(x, weight, 1e-6, offset, casting)
                    found = interpreted(rms_norm_triton, x, weight, 1e-6, offset, casting)
                    needs = (True, weight is not None)
                    expected = [y, r, *rms_norm_blocked_backward(upstream, x, r, weight, offset, needs)]
                    found = [*found, *interpreted(rms_norm_triton_backward, upstream, x, r, weight, offset, needs)]
                    for a, e in zip(found, expected, strict=True):
                        assert (a is None) == (e is None)
                        if e is not None:
                            tolerance = 4 * torch.finfo(e.dtype).eps
                            torch.testing.assert_close(a, e, rtol=tolerance, atol=4 * tolerance)
