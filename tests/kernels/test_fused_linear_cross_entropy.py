from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.kernels import LinearCrossEntropy, linear_cross_entropy, linear_cross_entropy_reference
from assay.kernels._chunked_head import chunk_rows


def head(rows=11, features=4, classes=9, dtype=torch.float64, seed=0, ignored=()):
    """Hidden states (R, H), weight (V, H) and bias (V,) that want gradients, and labels (R,)."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((rows, features), (classes, features), (classes,))
    )
    labels = torch.randint(0, classes, (rows,), generator=generator)
    labels[list(ignored)] = -100
    return hidden, weight, bias, labels


def eager(hidden, linear_weight, labels, *, linear_bias=None, **options):
    """What must come out, in plain torch."""
    return F.cross_entropy(F.linear(hidden, linear_weight, linear_bias), labels, **options)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 20),
    features=st.integers(1, 6),
    classes=st.integers(1, 12),
    chunk_size=st.sampled_from([None, 1, 7, 20]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    bias=st.booleans(),
    weighted=st.booleans(),
    ignored=st.sets(st.integers(0, 19), max_size=5),
    seed=st.integers(0, 2**16),
)
def test_equals_torch(rows, features, classes, chunk_size, reduction, label_smoothing, bias, weighted, ignored, seed):
    """Loss and gradients of some combination of options would differ from F.cross_entropy(F.linear) in float64."""
    hidden, weight, b, labels = head(rows, features, classes, seed=seed, ignored=[i for i in ignored if i < rows])
    options = {"reduction": reduction, "label_smoothing": label_smoothing, "linear_bias": b if bias else None}
    options["weight"] = (
        torch.rand(classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) if weighted else None
    )
    found = linear_cross_entropy(hidden, weight, labels, chunk_size=chunk_size, **options)
    expected = eager(hidden, weight, labels, **options)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11, equal_nan=True)
    if torch.isnan(expected).any():
        return
    upstream = torch.linspace(-1, 3.7, found.numel(), dtype=torch.float64).view(found.shape)
    wanted = [hidden, weight, *([b] if bias else [])]
    for a, e in zip(
        torch.autograd.grad(found, wanted, upstream), torch.autograd.grad(expected, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk_size", [1, 7, 11])
def test_z_loss_and_softcap_equal_their_definition(reduction, chunk_size):
    """The two terms that torch does not have would not be z_loss * lse^2 and softcap * tanh(z / softcap)."""
    hidden, weight, bias, labels = head(ignored=[3])
    logits = 2.0 * torch.tanh((hidden @ weight.T + bias) / 2.0)
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.2)
    losses = losses + 0.3 * torch.logsumexp(logits, 1).square() * (labels != -100)
    expected = {"mean": losses.sum() / 10, "sum": losses.sum(), "none": losses}[reduction]
    options = {"label_smoothing": 0.2, "z_loss": 0.3, "softcap": 2.0, "reduction": reduction, "chunk_size": chunk_size}
    found = linear_cross_entropy(hidden, weight, labels, linear_bias=bias, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted = (hidden, weight, bias)
    for a, e in zip(torch.autograd.grad(found.sum(), wanted), torch.autograd.grad(expected.sum(), wanted), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


def test_large_softcap_and_tiny_smoothing_are_the_plain_loss():
    """The limits of the options would not be the loss without them."""
    hidden, weight, _, labels = head()
    plain = linear_cross_entropy(hidden, weight, labels)
    limit = linear_cross_entropy(hidden, weight, labels, softcap=1e6, label_smoothing=1e-13, z_loss=1e-14)
    torch.testing.assert_close(limit, plain, rtol=1e-10, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_upstream_gradient_scales_all_gradients(reduction):
    """A loss that is one of several terms, or scaled for mixed precision, would get unscaled gradients."""
    hidden, weight, bias, labels = head()
    loss = linear_cross_entropy(hidden, weight, labels, linear_bias=bias, reduction=reduction).sum()
    once = torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True)
    scaled = torch.autograd.grad(3.7 * loss, (hidden, weight, bias))
    for a, b in zip(scaled, once, strict=True):
        torch.testing.assert_close(a, 3.7 * b)


def test_accumulates_into_grad_over_two_batches():
    """Gradient accumulation would lose the first mini-batch or scale it twice."""
    hidden, weight, _, labels = head()
    for _ in range(2):
        linear_cross_entropy(hidden, weight, labels).backward()
    (once,) = torch.autograd.grad(eager(hidden, weight, labels), weight)
    torch.testing.assert_close(weight.grad, 2 * once)


def test_ignored_rows_count_for_nothing():
    """Padding would change the loss or receive a gradient."""
    hidden, weight, _, labels = head(ignored=[0, 4, 10])
    kept = labels != -100
    loss = linear_cross_entropy(hidden, weight, labels, chunk_size=3)
    torch.testing.assert_close(loss, eager(hidden[kept], weight, labels[kept]))
    gradient, weight_gradient = torch.autograd.grad(loss, (hidden, weight))
    assert torch.equal(gradient[~kept], torch.zeros(3, 4, dtype=torch.float64)) and gradient[kept].abs().min() > 0
    (expected,) = torch.autograd.grad(eager(hidden[kept], weight, labels[kept]), weight)
    torch.testing.assert_close(weight_gradient, expected)


def test_all_rows_ignored_is_what_torch_makes_of_it():
    """A batch of padding only would raise, or spoil the weights with nan gradients."""
    hidden, weight, _, labels = head(ignored=range(11))
    loss = linear_cross_entropy(hidden, weight, labels)
    assert torch.isnan(loss) and torch.isnan(eager(hidden, weight, labels))
    for gradient in torch.autograd.grad(loss, (hidden, weight)):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    assert linear_cross_entropy(hidden, weight, labels, reduction="sum") == 0


def test_leading_dimensions_and_single_rows():
    """(batch, length, H) hidden states or one unbatched row would fail or give another shape than torch's."""
    hidden, weight, _, labels = head(rows=12)
    expected = eager(hidden, weight, labels, reduction="none")
    cube = linear_cross_entropy(hidden.view(3, 4, 4), weight, labels.view(3, 4), reduction="none")
    torch.testing.assert_close(cube, expected.view(3, 4))
    one = linear_cross_entropy(hidden[0], weight, labels[0], reduction="none")
    torch.testing.assert_close(one, expected[0])
    empty = torch.zeros(2, 0, dtype=torch.int64)
    assert linear_cross_entropy(hidden.new_zeros(2, 0, 4), weight, empty, reduction="none").shape == (2, 0)
    assert linear_cross_entropy(hidden.new_zeros(2, 0, 4), weight, empty, reduction="sum") == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_size", [16, 512])
def test_half_precision_loss_is_exact(dtype, chunk_size):
    """The loss would carry half precision's rounding error (1e-3 and more), as it does in torch's own chunked op."""
    hidden, weight, _, labels = head(rows=512, features=64, classes=1000, dtype=dtype)
    with torch.no_grad():
        weight /= 8
    exact = eager(hidden.double(), weight.double(), labels)
    loss = linear_cross_entropy(hidden, weight, labels, chunk_size=chunk_size)
    assert loss.dtype == torch.float32
    assert abs(loss.item() / exact.item() - 1) < 3e-5


def test_many_chunks_keep_the_bfloat16_weight_gradient_exact():
    """Sums over many chunks in bfloat16 would lose two digits of the weight's gradient; float32 sums must not."""
    hidden, weight, _, labels = head(rows=4096, features=16, classes=100, dtype=torch.bfloat16)
    (exact,) = torch.autograd.grad(eager(hidden.double(), weight.double(), labels), weight)

    def error(**options):
        loss = linear_cross_entropy(hidden, weight, labels, chunk_size=64, **options)
        (gradient,) = torch.autograd.grad(loss, weight)
        return float((gradient.double() - exact.double()).norm() / exact.double().norm())

    assert error() < 4e-3
    assert error(accumulate_dtype=torch.bfloat16) > 2 * error()


def test_float16_gradients_neither_overflow_nor_vanish():
    """A sum of 70000 before the division by the number of rows would be infinite in float16, a part of 1e-8 zero."""
    rows = 8192
    hidden = torch.full((rows, 1), 10.0, dtype=torch.float16)
    weight = torch.tensor([[0.0], [1.0]], dtype=torch.float16, requires_grad=True)
    linear_cross_entropy(hidden, weight, torch.zeros(rows, dtype=torch.int64)).backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[-10.0], [10.0]], dtype=torch.float16), rtol=2e-3, atol=0)
    hidden = torch.zeros(rows, 1, dtype=torch.float16, requires_grad=True)
    (2.0**14 * linear_cross_entropy(hidden, weight, torch.zeros(rows, dtype=torch.int64))).backward()
    torch.testing.assert_close(hidden.grad, torch.ones_like(hidden))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_saves_no_logits(reduction):
    """A tensor of the size of the logits would be kept for backward: all memory savings gone."""
    hidden, weight, bias, labels = head(rows=64, features=4, classes=128)
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = linear_cross_entropy(hidden, weight, labels, linear_bias=bias, chunk_size=8, reduction=reduction)
        eager(hidden, weight, labels)
    ours = saved[: next(i for i, size in enumerate(saved) if size == 64 * 128)]
    assert ours and max(ours) <= 128 * 4
    loss.sum().backward()


def test_hands_its_gradients_over_without_a_copy():
    """Autograd would copy the gradients into .grad, which doubles their memory."""
    hidden, weight, _, labels = head()
    addresses = {}

    def remember(tensor):
        addresses.setdefault(tensor.shape, tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        loss = linear_cross_entropy(hidden, weight, labels)
    loss.backward()
    assert weight.grad.data_ptr() == addresses[weight.shape]
    assert hidden.grad.data_ptr() == addresses[hidden.shape]


def test_forms_only_the_gradients_that_are_needed():
    """A frozen head would cost the memory and the time of its weight's gradient."""
    hidden, weight, _, labels = head(rows=3, features=4, classes=50)
    saved = []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = linear_cross_entropy(hidden, weight.detach(), labels)
    assert (50, 4) not in saved and (3, 4) in saved
    loss.backward()
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, labels).requires_grad


def test_second_order_forward_mode_and_func_are_refused():
    """A derivative that the op does not have would come out as zero instead of an error."""
    hidden, weight, _, labels = head()
    for reduction in ("mean", "none"):
        loss = linear_cross_entropy(hidden, weight, labels, reduction=reduction).sum()
        with pytest.raises(RuntimeError, match="second derivative"):
            torch.autograd.grad(loss, weight, create_graph=True)
    plain = weight.detach()
    with pytest.raises(InvalidInput, match="forward mode"):
        torch.func.jvp(lambda w: linear_cross_entropy(hidden.detach(), w, labels), (plain,), (plain,))
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda w: linear_cross_entropy(hidden.detach(), w, labels))(plain)


def test_reference_has_second_derivatives():
    """The way out that the error message names would not work."""
    hidden, weight, bias, labels = head(rows=4, features=2, classes=3)
    assert torch.autograd.gradgradcheck(
        lambda h, w, b: linear_cross_entropy_reference(h, w, labels, linear_bias=b, z_loss=0.1, softcap=3.0),
        (hidden, weight, bias),
    )


def test_module_binds_the_options():
    """LinearCrossEntropy would drop an option on its way to the function, or its class weights from its state."""
    hidden, weight, bias, labels = head()
    class_weight = torch.linspace(0.1, 1, 9, dtype=torch.float64)
    options = {
        "reduction": "sum",
        "ignore_index": int(labels[0]),
        "label_smoothing": 0.1,
        "z_loss": 0.2,
        "softcap": 3.0,
    }
    module = LinearCrossEntropy(weight=class_weight, **options, chunk_size=2)
    expected = linear_cross_entropy_reference(hidden, weight, labels, linear_bias=bias, weight=class_weight, **options)
    torch.testing.assert_close(module(hidden, weight, labels, bias), expected)
    assert "weight" in module.state_dict() and "softcap=3.0" in repr(module)


def test_extreme_logits_stay_exact():
    """Softmax would overflow, or the loss of a confident prediction would drown in the size of its logits."""
    hidden = torch.tensor([[1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.9999], [-1.0]])
    loss = linear_cross_entropy(hidden, weight, torch.tensor([2]))
    assert loss.item() == pytest.approx(2e4 + torch.log1p(torch.exp(torch.tensor(-1.0))).item(), rel=1e-6)
    near = linear_cross_entropy(hidden, weight, torch.tensor([0]))
    assert near.item() == pytest.approx(
        F.cross_entropy(hidden.double() @ weight.double().T, torch.tensor([0])).item(), rel=2e-3
    )


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.integers(1, 10**6))
@settings(max_examples=50, deadline=None)
def test_chunks_stay_within_bounds(rows, features, classes):
    """The buffer would be larger than the weight and 64 MiB, or a chunk empty or larger than the batch."""
    size = chunk_rows(rows, features, classes)
    assert 1 <= size <= rows
    assert size * classes <= max(features * classes, 2**24, classes)
    assert size <= max(256, -(-rows // 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.full((11,), 9)}, r"label 9 is outside \[0, 9\)"),
        ({"target": torch.full((11,), -1)}, "label -1 is outside"),
        ({"target": torch.zeros(10, dtype=torch.int64)}, r"labels of shape \(11,\)"),
        ({"target": torch.zeros(11, 9)}, "class probabilities are not supported"),
        ({"target": torch.zeros(11, dtype=torch.int32)}, "int64"),
        ({"input": torch.zeros(11, 4, dtype=torch.int64)}, "floating point"),
        ({"input": torch.zeros(11, 4)}, "float64 but input is torch.float32"),
        ({"input": torch.zeros((), dtype=torch.float64)}, "input must be"),
        ({"linear_weight": torch.zeros(9, 5, dtype=torch.float64)}, r"\(V, 4\)"),
        ({"linear_weight": torch.zeros(0, 4, dtype=torch.float64)}, "V > 0"),
        ({"linear_bias": torch.zeros(8, dtype=torch.float64)}, r"linear_bias must have shape \(9,\)"),
        ({"linear_bias": torch.zeros(9)}, "linear_bias is torch.float32"),
        ({"weight": torch.zeros(8)}, r"weight must have shape \(9,\)"),
        ({"linear_weight": torch.zeros(9, 4, dtype=torch.float64, device="meta")}, "on meta"),
        ({"reduction": "average"}, "mean, sum, none"),
        ({"label_smoothing": 1.5}, r"in \[0, 1\]"),
        ({"label_smoothing": float("nan")}, r"in \[0, 1\]"),
        ({"z_loss": -1.0}, "at least 0"),
        ({"softcap": 0.0}, "above 0"),
        ({"chunk_size": 0}, "at least 1"),
        ({"accumulate_dtype": torch.int32}, "floating point type"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    """A wrong shape, dtype, label or option would give a wrong number or an error from the depths of torch."""
    hidden, weight, _, labels = head()
    arguments = {"input": hidden, "linear_weight": weight, "target": labels, **change}
    with pytest.raises(InvalidInput, match=message):
        linear_cross_entropy(**arguments)
