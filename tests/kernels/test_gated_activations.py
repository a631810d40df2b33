from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.kernels import geglu, geglu_reference, swiglu, swiglu_reference
from assay.kernels.gated_activations import blocked

OPS = [
    (swiglu, lambda a, b: F.silu(a) * b),
    (geglu, lambda a, b: F.gelu(a, approximate="tanh") * b),
]


def pair(*shape, dtype=torch.float64, seed=0, size=2.0):
    """Two normal tensors that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (size * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return [t.to(dtype).requires_grad_() for t in drawn]


@pytest.mark.parametrize(("op", "eager"), OPS)
@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(0, 5), max_size=3), seed=st.integers(0, 2**16))
def test_equals_torch(op, eager, shape, seed):
    """Some shape, empty or scalar ones among them, would give another result or gradient than torch's own operators."""
    a, b = pair(*shape, seed=seed)
    found, expected = op(a, b), eager(a, b)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.linspace(-1, 3.7, found.numel(), dtype=torch.float64).view(found.shape)
    for x, y in zip(
        torch.autograd.grad(found, (a, b), upstream), torch.autograd.grad(expected, (a, b), upstream), strict=True
    ):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("op", "eager"), OPS)
def test_blocks_meet_without_gaps(op, eager):
    """Rows at the border of two blocks would be left out or computed twice."""
    a, b = pair(1500, 400, dtype=torch.float32)
    found, expected = op(a, b), eager(a, b)
    torch.testing.assert_close(found, expected)
    for x, y in zip(torch.autograd.grad(found.sum(), (a, b)), torch.autograd.grad(expected.sum(), (a, b)), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize(("op", "eager"), OPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_compiled_body_is_torchs(op, eager, dtype, monkeypatch):
    """What a compiler traces of the fused formulas would differ from torch's operators, on strided halves too."""
    # Tracing and lowering as for the real back end, but without the seconds that its C++ compiler takes.
    traced = partial(torch.compile, backend="aot_eager", dynamic=True, fullgraph=True)
    monkeypatch.setattr(blocked, "compiled_body", traced)
    both, upstream = pair(6, 14, dtype=dtype, size=3.0)[0], pair(6, 7, dtype=dtype, seed=1)[0].detach()
    found = op(*both.chunk(2, 1), compiled=True)
    exact = both.detach().double().requires_grad_()
    expected = eager(*exact.chunk(2, 1))
    gradients = [torch.autograd.grad(y, x, upstream.to(y.dtype))[0] for y, x in ((found, both), (expected, exact))]
    tolerance = (64 if dtype == torch.float64 else 4) * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("op", "eager"), OPS)
def test_saves_its_two_inputs_and_nothing_else(op, eager):
    """The activation would be kept for backward: the memory that the operator is there to save."""
    a, b = pair(8, 16)
    saved = []

    def pack(tensor):
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        op(a, b)
        assert sorted(saved) == sorted((a.data_ptr(), b.data_ptr()))
        saved.clear()
        eager(a, b)
        assert len(set(saved)) == 3


def test_takes_the_halves_of_a_projection():
    """Gate and value that are views of one tensor, as most models have them, would be misread."""
    (both, _) = pair(3, 5, 14)
    found = swiglu(*both.chunk(2, -1))
    (gradient,) = torch.autograd.grad(found.sum(), both)
    expected = F.silu(both[..., :7]) * both[..., 7:]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), both)[0])


@pytest.mark.parametrize(("op", "eager"), OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_no_more_than_eager(op, eager, dtype):
    """The operator would cost accuracy: its rounding errors against float64 must not exceed eager code's by a tenth."""
    a, b = pair(64, 64, dtype=dtype)
    upstream = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in (a, b)]
    truth = eager(*exact)
    truths = (truth, *torch.autograd.grad(truth, exact, upstream.double()))

    def errors(function):
        value = function(a, b)
        found = (value, *torch.autograd.grad(value, (a, b), upstream))
        return [float((x.detach().double() - y.detach()).norm()) for x, y in zip(found, truths, strict=True)]

    assert all(ours <= 1.1 * theirs for ours, theirs in zip(errors(op), errors(eager), strict=True))


@pytest.mark.parametrize("op", [swiglu, geglu])
def test_float16_gradient_does_not_pass_through_infinity(op):
    """Upstream times b, which overflows, would make an infinity or nan of a gradient that is 0 to float16."""
    a = torch.tensor([-30.0], dtype=torch.float16, requires_grad=True)
    b = torch.tensor([3000.0], dtype=torch.float16)
    op(a, b).backward(torch.tensor([3000.0], dtype=torch.float16))
    assert a.grad.abs() < 1e-3


@pytest.mark.parametrize(("op", "limit"), [(swiglu, 1.0), (geglu, 1.0)])
def test_limits_far_from_zero(op, limit):
    """A wide open gate would not pass b times a, or a closed one not 0, or the slope there would overflow to nan."""
    a = torch.tensor([50.0, -200.0, 3e5, -3e5], requires_grad=True)
    result = op(a, torch.ones(4))
    torch.testing.assert_close(result, torch.tensor([50.0, 0.0, 3e5, 0.0]), rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(result.sum(), a)
    torch.testing.assert_close(slope, torch.tensor([limit, 0.0, limit, 0.0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("op", "reference"), [(swiglu, swiglu_reference), (geglu, geglu_reference)])
def test_second_derivatives_are_right(op, reference):
    """Gradient penalties would be wrong."""
    a, b = pair(2, 3)
    assert torch.autograd.gradgradcheck(op, (a, b))
    with pytest.raises(InvalidInput, match="forward mode"):
        torch.func.jvp(op, (a.detach(), b.detach()), (a.detach(), b.detach()))
    torch.func.jvp(reference, (a.detach(), b.detach()), (a.detach(), b.detach()))


@pytest.mark.parametrize("op", [swiglu, geglu])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3), r"same shape, not \(2, 3\) and \(3,\)"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), "same dtype"),
        (torch.zeros(2), torch.zeros(2, device="meta"), "same device"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), "floating point"),
    ],
)
def test_bad_input_is_one_clear_error(op, a, b, message):
    """A broadcast or a cast that nobody asked for would give a result of another shape or dtype."""
    with pytest.raises(InvalidInput, match=message):
        op(a, b)
