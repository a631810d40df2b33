from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.kernels import jsd, kl_div


def pair(*shape, dtype=torch.float64, seed=0, size=2.0):
    """Log-probabilities of student and teacher that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (size * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return [t.log_softmax(-1).to(dtype).requires_grad_() for t in drawn]


def by_hand(x, t, beta):
    """The generalised Jensen-Shannon divergence of one row, class by class, in Python's floats."""
    total = 0.0
    for log_q, log_p in zip(x.tolist(), t.tolist(), strict=True):
        p, q = math.exp(log_p), math.exp(log_q)
        m = beta * p + (1 - beta) * q
        total += beta * p * math.log(p / m) + (1 - beta) * q * math.log(q / m)
    return total


def gradients(value, tensors):
    """Gradients of a weighted sum of results."""
    upstream = torch.linspace(-1, 3.7, value.numel(), dtype=value.dtype).view(value.shape)
    return torch.autograd.grad(value, tensors, upstream)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    reduction=st.sampled_from(["mean", "batchmean", "sum", "none"]),
    log_target=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_kl_div_equals_torch(shape, reduction, log_target, seed):
    """Value or gradients would differ from F.kl_div's in float64."""
    x, t = pair(*shape, seed=seed)
    target = t if log_target else t.detach().exp().requires_grad_()
    options = {"reduction": reduction, "log_target": log_target}
    found, expected = kl_div(x, target, **options), F.kl_div(x, target, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for a, e in zip(gradients(found, (x, target)), gradients(expected, (x, target)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_is_its_definition(beta):
    """The mixture's shares would be swapped, or a term be missing."""
    x, t = pair(4, 7)
    expected = [by_hand(a, b, beta) for a, b in zip(x, t, strict=True)]
    torch.testing.assert_close(jsd(x, t, beta=beta, reduction="none").tolist(), expected)
    torch.testing.assert_close(jsd(x, t, beta=beta).item(), sum(expected) / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype):
    """The divergence would be rounded to three digits, or lose small terms of a large vocabulary."""
    x, t = pair(3, 30000, dtype=dtype)
    found = jsd(x, t, reduction="none")
    exact = [by_hand(a, b, 0.5) for a, b in zip(x.double(), t.double(), strict=True)]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double().tolist(), exact, rtol=2e-5, atol=0)


def test_the_ends_are_forward_and_reverse_kl():
    """A beta of 0 or 1 would not be the divergences that papers and other libraries mean by them."""
    x, t = pair(4, 7)
    forward = F.kl_div(x, t, log_target=True, reduction="none").sum(-1)
    reverse = F.kl_div(t, x, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(jsd(x, t, beta=0, reduction="none"), forward)
    torch.testing.assert_close(jsd(x, t, beta=1, reduction="none"), reverse)


def test_the_ends_are_limits_over_the_share():
    """The ends would not continue what lies between them, in value or in gradient."""
    x, t = pair(4, 7)
    for end, near, share in ((0.0, 1e-6, 1e-6), (1.0, 1 - 1e-6, 1e-6)):
        torch.testing.assert_close(jsd(x, t, beta=near) / share, jsd(x, t, beta=end), rtol=1e-4, atol=0)
        close = torch.autograd.grad(jsd(x.log_softmax(-1), t, beta=near) / share, x)[0]
        torch.testing.assert_close(
            close, torch.autograd.grad(jsd(x.log_softmax(-1), t, beta=end), x)[0], rtol=1e-3, atol=1e-7
        )


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(1, 30), beta=st.sampled_from([0.0, 1e-3, 0.1, 0.5, 0.75, 1.0]), seed=st.integers(0, 2**16))
def test_jsd_is_a_bounded_divergence(classes, beta, seed):
    """It would be negative, not 0 for equal distributions, or above the entropy of its shares."""
    x, t = pair(3, classes, seed=seed, size=5.0)
    rows = jsd(x, t, beta=beta, reduction="none")
    assert (rows >= -1e-12).all()
    assert jsd(x, x, beta=beta).abs() < 1e-12
    torch.testing.assert_close(rows, jsd(t, x, beta=1 - beta, reduction="none"), rtol=1e-6, atol=1e-9)
    if 0 < beta < 1:
        entropy = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
        assert (rows <= entropy + 1e-12).all()


def test_classes_without_probability_count_nothing():
    """Minus infinity, which masks a class, would make nan of the divergence or of a gradient."""
    x, t = pair(2, 5)
    with torch.no_grad():
        x[0, 1] = t[0, 1] = t[1, 2] = -math.inf
    for beta in (0.0, 0.5):
        value = jsd(x, t, beta=beta)
        assert torch.isfinite(value)
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, (x, t)))
    assert jsd(x, t, beta=1.0) == math.inf  # the teacher excludes what the student thinks possible
    kept = [0, 2, 3, 4]
    torch.testing.assert_close(
        kl_div(x[0], t[0], log_target=True, reduction="sum"),
        F.kl_div(x[0, kept], t[0, kept], log_target=True, reduction="sum"),
    )


def test_labels_leave_rows_out():
    """Prompt and padding tokens would be distilled too, or the mean be over them."""
    x, t = pair(4, 7)
    labels = torch.tensor([3, -100, 0, -100])
    torch.testing.assert_close(jsd(x, t, labels=labels), jsd(x[[0, 2]], t[[0, 2]]))
    (gradient,) = torch.autograd.grad(jsd(x, t, labels=labels), x)
    assert torch.equal(gradient[[1, 3]], torch.zeros(2, 7, dtype=torch.float64)) and gradient[0].abs().min() > 0
    nothing = jsd(x, t, labels=torch.full((4,), -100))
    assert torch.isnan(nothing) and torch.equal(torch.autograd.grad(nothing, x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("call", [lambda x, t: jsd(x, t), lambda x, t: kl_div(x, t, log_target=True)])
def test_saves_its_two_inputs_and_nothing_else(call):
    """A matrix of the inputs' size would be kept for backward."""
    x, t = pair(6, 8)
    saved = []

    def pack(tensor):
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(x, t)
        assert sorted(saved) == sorted((x.data_ptr(), t.data_ptr()))


def test_blocks_meet_without_gaps():
    """Rows at the border of two blocks would be left out or counted twice."""
    x, t = pair(700, 1000, dtype=torch.float32)
    torch.testing.assert_close(
        kl_div(x, t, log_target=True, reduction="sum"), F.kl_div(x, t, log_target=True, reduction="sum")
    )


def test_second_derivatives_are_right_and_forward_mode_refused():
    """A Hessian would be wrong, a tangent come out as zero."""
    x, t = pair(2, 3)
    assert torch.autograd.gradgradcheck(lambda a, b: jsd(a, b, beta=0.3), (x, t))
    assert torch.autograd.gradgradcheck(lambda a, b: kl_div(a, b, log_target=True, reduction="none"), (x, t))
    with pytest.raises(InvalidInput, match="forward mode"):
        torch.func.jvp(jsd, (x.detach(), t.detach()), (x.detach(), t.detach()))


def test_empty_batches():
    """A batch without rows would raise, or be 0 where torch's mean is nan."""
    nothing = torch.zeros(0, 5)
    assert jsd(nothing, nothing, reduction="sum") == 0 and torch.isnan(jsd(nothing, nothing))
    assert torch.isnan(kl_div(nothing, nothing)) and kl_div(nothing, nothing, reduction="none").shape == (0, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: jsd(x, t[:2]), "same shape"),
        (lambda x, t: kl_div(x, t.float()), "same dtype"),
        (lambda x, t: kl_div(x, t.to("meta")), "same device"),
        (lambda x, t: kl_div(x.long(), t.long()), "floating point"),
        (lambda x, t: jsd(x, t, beta=1.1), r"in \[0, 1\]"),
        (lambda x, t: jsd(x, t, beta=float("nan")), r"in \[0, 1\]"),
        (lambda x, t: jsd(x, t, reduction="batchmean"), "mean, sum, none"),
        (lambda x, t: kl_div(x, t, reduction="average"), "mean, batchmean, sum, none"),
        (lambda x, t: kl_div(x[0, 0], t[0, 0], reduction="batchmean"), "batch dimension"),
        (lambda x, t: jsd(x, t, labels=torch.zeros(3, dtype=torch.int64)), r"labels must be int64 of shape \(4,\)"),
        (lambda x, t: jsd(x[:, :0], t[:, :0]), "V > 0"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    """A broadcast, a cast or a wrong option would give a wrong number."""
    with pytest.raises(InvalidInput, match=message):
        call(*pair(4, 7))
