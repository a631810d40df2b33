from __future__ import annotations

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import polynomial

from assay.errors import InvalidInput
from assay.kernels import _ahead_of_time, group_rational, group_rational_reference
from assay.kernels.rational_activation import blocked
from assay.kernels.rational_activation.accumulating import group_rational_gradients_accumulating
from assay.nn import fit_rational
from assay.testing._interpreter import interpreter


def tensors(shape=(7, 6), groups=(3, 3), degrees=(5, 4), dtype=torch.float64, seed=0):
    """X (..., D) and coefficients that want gradients, and an upstream gradient."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (shape, (groups[0], degrees[0] + 1), (groups[1], degrees[1]), shape)
    x, a, b, upstream = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return x.requires_grad_(), a.requires_grad_(), b.requires_grad_(), upstream


def result_and_gradients(function, x, a, b, upstream):
    """The result, and gradients by x, numerator and denominator."""
    y = function(x, a, b)
    return [y.detach(), *torch.autograd.grad(y, (x, a, b), upstream)]


def by_numpy(x, a, b):
    """Channel by channel with numpy's polynomials, each group of neighbouring channels with its own coefficients."""
    groups = max(len(a), len(b))
    x, a, b = x.detach().numpy(), a.detach().numpy(), b.detach().numpy()
    y = np.empty_like(x)
    for channel in range(x.shape[-1]):
        group = channel // (x.shape[-1] // groups)
        below = np.r_[1.0, np.abs(b[group % len(b)])]
        z = x[..., channel]
        y[..., channel] = polynomial.polyval(z, a[group % len(a)]) / polynomial.polyval(np.abs(z), below)
    return y


def by_formula(x, a, b, upstream):
    """The gradients of the official kernels' comments, one element at a time."""
    groups, (rows, channels) = len(a), x.shape
    of_x, of_a, of_b = torch.zeros_like(x), torch.zeros_like(a), torch.zeros_like(b)
    for row in range(rows):
        for channel in range(channels):
            g, z, o = channel // (channels // groups), float(x[row, channel]), float(upstream[row, channel])
            num, den = [float(c) for c in a[g]], [float(c) for c in b[g]]
            p = sum(c * z**i for i, c in enumerate(num))
            q = 1 + sum(abs(c) * abs(z) ** (j + 1) for j, c in enumerate(den))
            r = sum(i * c * z ** (i - 1) for i, c in enumerate(num) if i)
            s = (-1 if z < 0 else 1) * sum((j + 1) * abs(c) * abs(z) ** j for j, c in enumerate(den))
            of_x[row, channel] = o * (r / q - p * s / q**2)
            for i in range(len(num)):
                of_a[g, i] += o * z**i / q
            for j, c in enumerate(den):
                of_b[g, j] -= (-1 if c < 0 else 1) * o * abs(z) ** (j + 1) * p / q**2
    return of_x, of_a, of_b


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(0, 9),
    group_channels=st.integers(1, 4),
    groups=st.sampled_from([(1, 1), (3, 3), (1, 4), (2, 1)]),
    degrees=st.tuples(st.integers(0, 6), st.integers(1, 5)),
    block=st.sampled_from([1, 8, 2**17]),
    seed=st.integers(0, 2**16),
)
def test_is_numpys_ratio_of_polynomials(rows, group_channels, groups, degrees, block, seed):
    """Some shape, sharing, degree or cutting into blocks would give other values, or other gradients than autograd's."""
    x, a, b, upstream = tensors((rows, max(groups) * group_channels), groups, degrees, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(blocked.BLOCK_ELEMENTS, False, block)
        found = result_and_gradients(lambda *t: group_rational(*t, compiled=False), x, a, b, upstream)
    np.testing.assert_allclose(found[0].numpy(), by_numpy(x, a, b), rtol=1e-11, atol=1e-12)
    for f, e in zip(found, result_and_gradients(group_rational_reference, x, a, b, upstream), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-10)


def test_gradients_are_the_papers():
    """The formulas of the paper's kernels, written out element by element, would give something else."""
    x, a, b, upstream = tensors((5, 6))
    found = result_and_gradients(group_rational, x, a, b, upstream)
    for f, e in zip(found[1:], by_formula(x.detach(), a.detach(), b.detach(), upstream), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-11, atol=1e-11)


def test_the_compiled_body_is_the_plain_one(monkeypatch):
    """What a compiler traces of the formulas, in blocks of unequal rows, would differ from the steps in buffers."""
    # Tracing and lowering as for the real back end, but without the quarter of a minute that its C++ compiler takes.
    traced = partial(torch.compile, backend="aot_eager", dynamic=True, fullgraph=True)
    monkeypatch.setattr(blocked, "compiled_body", traced)
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", {False: 64, True: 64})
    x, a, b, upstream = tensors((3, 11, 12), (1, 2), dtype=torch.bfloat16)
    plain, fused = (
        result_and_gradients(lambda *t, c=compiled: group_rational(*t, compiled=c), x, a, b, upstream)
        for compiled in (False, True)
    )
    for p, f in zip(plain, fused, strict=True):
        assert p.dtype == f.dtype == torch.bfloat16
        torch.testing.assert_close(p, f, rtol=1e-2, atol=1e-2)


def test_finite_differences():
    """The gradients would not be those of the function."""
    x, a, b, _ = tensors((4, 4), (2, 2), (3, 2))
    assert torch.autograd.gradcheck(group_rational, (x, a, b))
    assert torch.autograd.gradgradcheck(group_rational, (x, a, b))


@pytest.mark.parametrize("function", [group_rational, group_rational_reference])
def test_at_zero_gradients_come_from_above(function):
    """Coefficients that start at 0, as in the identity, would never learn; or -0 would be taken for negative."""
    x = torch.tensor([[0.0, -0.0, 2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    identity = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    one = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    b = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    y = function(x, identity, b)
    torch.testing.assert_close(y, x, rtol=0, atol=0)
    of_x, of_a, of_b = torch.autograd.grad(y.sum(), (x, identity, b))
    torch.testing.assert_close(of_x, torch.ones_like(x))
    torch.testing.assert_close(of_a[0], torch.tensor([4.0, 1.0, 5.0], dtype=torch.float64))  # sums of x^i
    torch.testing.assert_close(of_b[0], torch.tensor([-3.0, -7.0], dtype=torch.float64))  # -sums of x |x|^j
    slope = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    (at_kink,) = torch.autograd.grad(function(x, one, slope).sum(), x)
    torch.testing.assert_close(at_kink[0, :2], torch.tensor([-0.5, -0.5], dtype=torch.float64))


def test_symmetries():
    """Scaled numerators would not scale values and gradients, or the order of rows would matter."""
    x, a, b, upstream = tensors((20, 6))
    y, of_x, of_a, of_b = result_and_gradients(group_rational, x, a, b, upstream)
    scaled = result_and_gradients(group_rational, x, (3 * a).detach().requires_grad_(), b, upstream)
    for f, e in zip(scaled, (3 * y, 3 * of_x, of_a, 3 * of_b), strict=True):
        torch.testing.assert_close(f, e)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled = result_and_gradients(group_rational, x[order].detach().requires_grad_(), a, b, upstream[order])
    for f, e in zip(shuffled, (y[order], of_x[order], of_a, of_b), strict=True):
        torch.testing.assert_close(f, e)
    shared = result_and_gradients(group_rational, x, a[:1].detach().requires_grad_(), b, upstream)
    separate = result_and_gradients(group_rational, x, a[:1].repeat(3, 1).detach().requires_grad_(), b, upstream)
    torch.testing.assert_close(shared[2], separate[2].sum(0, keepdim=True))


def test_the_same_number_in_exact_arithmetic():
    """One value computed in fractions by hand would come out differently."""
    x, a, b = torch.tensor([-0.5]), torch.tensor([[1.0, 2.0, -3.0]]), torch.tensor([[-0.25, 2.0]])
    exact = (1 + 2 * Fraction(-1, 2) - 3 * Fraction(1, 4)) / (1 + Fraction(1, 4) * Fraction(1, 2) + 2 * Fraction(1, 4))
    assert group_rational(x, a, b).item() == pytest.approx(float(exact), rel=1e-6)


def test_sums_per_block_round_an_order_less_than_running_sums():
    """The paper's claim for float32 gradients of the coefficients would not hold for our two versions."""
    fit = fit_rational("gelu")
    generator = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(3000, 96, generator=generator) for _ in range(2))
    a, b = (torch.tensor(row).repeat(2, 1) for row in (fit.numerator, fit.denominator))
    exact = blocked.group_rational_gradients_blocked(*(t.double() for t in (upstream, x, a, b)))
    few, many = (
        sum(float((f.double() - e).abs().sum()) for f, e in zip(found[1:], exact[1:], strict=True))
        for found in (
            blocked.group_rational_gradients_blocked(upstream, x, a, b),
            group_rational_gradients_accumulating(upstream, x, a, b),
        )
    )
    assert few < many / 10


def test_the_accumulating_version_is_the_same_function():
    """What FlashKAT is compared with would compute something else, and its errors would mean nothing."""
    x, a, b, upstream = (t.detach() for t in tensors((70, 6)))
    found = group_rational_gradients_accumulating(upstream, x, a, b)
    for f, e in zip(found, blocked.group_rational_gradients_blocked(upstream, x, a, b), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-10)


def test_blocks_cover_every_row_once(monkeypatch):
    """Rows would be left out or taken twice, or blocks grow beyond the cache."""
    monkeypatch.setitem(blocked.BLOCK_ELEMENTS, False, 100)
    for rows in (1, 2, 7, 16, 17, 333):
        slices = list(blocked._blocks(torch.empty(rows, 12), compiled=False))
        assert [i for s in slices for i in range(s.start, s.stop)] == list(range(rows))
        sizes = {s.stop - s.start for s in slices}
        assert max(sizes) - min(sizes) <= 1 and 12 * (max(sizes) - 1) < 100 * torch.get_num_threads()


def test_saves_nothing_but_its_inputs():
    """Backward would hold temporaries of x's size."""
    x, a, b, _ = tensors((50, 6))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        group_rational(x, a, b)
    assert set(saved) == {t.data_ptr() for t in (x, a, b)}


def test_half_precision_overflows_only_where_the_result_does():
    """Powers of large float16 numbers would become inf - inf, though the result is small."""
    x = torch.tensor([[6e4, -6e4, 200.0]], dtype=torch.float16)
    a, b = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, 0.0, 1e3]])
    found = group_rational(x, a, b)
    torch.testing.assert_close(found.float(), x.float() / 1e3, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("shape", "a", "b", "message"),
    [
        ((4, 6), (4, 3), (4, 2), "divide the channels"),
        ((4, 6), (2, 3), (3, 2), "groups must agree"),
        ((4, 6), (3,), (1, 2), "a row per group"),
        ((4, 6), (3, 0), (1, 2), "a row per group"),
        ((), (1, 2), (1, 2), "floating point of shape"),
    ],
)
def test_shapes_that_do_not_fit(shape, a, b, message):
    """A wrong shape would be broadcast to a wrong number, or end in an error that says nothing."""
    with pytest.raises(InvalidInput, match=message):
        group_rational(torch.zeros(shape), torch.zeros(a), torch.zeros(b))


def test_types_that_do_not_fit():
    """Integers or coefficients of another precision would be cast without a word; a tangent would be dropped."""
    x, a, b = torch.zeros(2, 4), torch.zeros(1, 3), torch.zeros(1, 2)
    with pytest.raises(InvalidInput, match="floating point"):
        group_rational(x.long(), a, b)
    with pytest.raises(InvalidInput, match=r"numerator is torch\.float64"):
        group_rational(x, a.double(), b)
    with pytest.raises(InvalidInput, match=r"denominator is torch\.bfloat16"):
        group_rational(x, a, b.bfloat16())
    with pytest.raises(InvalidInput, match="forward mode"):
        torch.func.jvp(lambda z: group_rational(z, a, b), (x,), (x,))


TRITON_CASES = [
    ((70, 15), 3, (5, 4), torch.float32),
    ((33, 140), 2, (5, 4), torch.bfloat16),
    ((65, 260), 2, (0, 2), torch.float16),
    ((5, 1), 1, (2, 1), torch.float32),
    ((0, 6), 2, (5, 4), torch.float32),
]


def test_triton_kernels_in_the_interpreter():
    """Tiles that rows and channels don't fill would add to the sums or be left out of them."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from assay.kernels.rational_activation import triton_kernel

    with interpreter() as interpreted:
        for shape, groups, degrees, dtype in TRITON_CASES:
            x, _, _, upstream = (t.detach() for t in tensors(shape, (groups, groups), degrees, dtype))
            _, a, b, _ = (t.detach() for t in tensors((1, groups), (groups, groups), degrees, torch.float32))
            tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
            y = interpreted(triton_kernel.group_rational_triton, x, a, b)
            torch.testing.assert_close(y, blocked.group_rational_blocked(x, a, b), **tolerance)
            expected = blocked.group_rational_gradients_blocked(upstream, x, a, b)
            for launch in ("gradients", "gradients_accumulating"):
                found = interpreted(getattr(triton_kernel, f"group_rational_{launch}_triton"), upstream, x, a, b)
                torch.testing.assert_close(found[0], expected[0], **tolerance)
                for f, e in zip(found[1:], expected[1:], strict=True):  # summed in float32 whatever x is
                    torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-3)


def test_triton_kernels_compile_for_sm_90():
    """A kernel would not compile for an H100, spill registers, or still add element by element."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from assay.kernels.rational_activation import triton_kernel

    found = [_ahead_of_time.compile_for(entry) for entry in triton_kernel.ahead_of_time()]
    assert len(found) == 6
    for kernel in found:
        assert kernel.spilled_bytes == 0 and kernel.registers <= 128
        assert (kernel.atomics > 0) == ("accumulating" in kernel.name)
