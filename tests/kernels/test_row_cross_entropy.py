from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.kernels import cross_entropy, linear_cross_entropy


def scores(rows=11, classes=9, dtype=torch.float64, seed=0, ignored=(), size=2.0):
    """Logits (R, V) that want a gradient and are no leaf, and labels (R,)."""
    generator = torch.Generator().manual_seed(seed)
    leaf = (size * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    labels = torch.randint(0, classes, (rows,), generator=generator)
    labels[list(ignored)] = -100
    return leaf.clone(), labels, leaf


def gradient(loss, leaf):
    """The leaf's gradient of a weighted sum of losses."""
    return torch.autograd.grad(loss, leaf, torch.linspace(-1, 3.7, loss.numel(), dtype=loss.dtype).view(loss.shape))[0]


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 20),
    classes=st.integers(1, 12),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    weighted=st.booleans(),
    in_place=st.booleans(),
    ignored=st.sets(st.integers(0, 19), max_size=5),
    seed=st.integers(0, 2**16),
)
def test_equals_torch(rows, classes, reduction, label_smoothing, weighted, in_place, ignored, seed):
    """Loss or gradient of some combination of options would differ from F.cross_entropy in float64."""
    logits, labels, leaf = scores(rows, classes, seed=seed, ignored=[i for i in ignored if i < rows])
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    options["weight"] = (
        torch.rand(classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) if weighted else None
    )
    expected = F.cross_entropy(leaf, labels, **options)
    found = cross_entropy(logits, labels, in_place=in_place, **options)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11, equal_nan=True)
    if not torch.isnan(expected).any():
        torch.testing.assert_close(gradient(found, leaf), gradient(expected, leaf), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("in_place", [False, True])
def test_z_loss_and_softcap_equal_their_definition(reduction, in_place):
    """The two terms that torch does not have would not be z_loss * lse^2 and softcap * tanh(z / softcap)."""
    logits, labels, leaf = scores(ignored=[3])
    capped = 2.0 * torch.tanh(leaf / 2.0)
    losses = F.cross_entropy(capped, labels, reduction="none", label_smoothing=0.2)
    losses = losses + 0.3 * torch.logsumexp(capped, 1).square() * (labels != -100)
    expected = {"mean": losses.sum() / 10, "sum": losses.sum(), "none": losses}[reduction]
    options = {"label_smoothing": 0.2, "z_loss": 0.3, "softcap": 2.0, "reduction": reduction}
    found = cross_entropy(logits, labels, in_place=in_place, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(found, leaf), gradient(expected, leaf), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_linear_one_with_the_identity_as_head(dtype):
    """The two operators would disagree on what an option means."""
    logits, labels, _ = scores(dtype=dtype, ignored=[2])
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0, "weight": torch.linspace(0.1, 1, 9)}
    linear = linear_cross_entropy(logits, torch.eye(9, dtype=dtype), labels, **options)
    torch.testing.assert_close(cross_entropy(logits, labels, **options), linear, rtol=1e-6, atol=0)


def kept_for_backward(call):
    """Addresses of the floating-point tensors of two dimensions that autograd keeps."""
    saved = []

    def pack(tensor):
        saved.extend([tensor.data_ptr()] if tensor.dim() == 2 else [])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return saved


@pytest.mark.parametrize("in_place", [False, True])
def test_keeps_the_logits_and_no_other_matrix(in_place):
    """A tensor of the size of the logits would be kept beside them, as eager code does."""
    logits, labels, _ = scores()
    ours = kept_for_backward(lambda: cross_entropy(logits, labels, in_place=in_place))
    assert ours == [logits.data_ptr()]
    logits, labels, _ = scores()
    eager = kept_for_backward(lambda: F.cross_entropy(logits, labels))
    assert any(address != logits.data_ptr() for address in eager)


def test_in_place_makes_the_gradient_in_the_memory_of_the_logits():
    """The gradient would take memory of its own, forward or backward."""
    logits, labels, leaf = scores()
    seen = {}
    logits.register_hook(lambda g: seen.update(address=g.data_ptr()))
    loss = cross_entropy(logits, labels, reduction="sum", in_place=True)
    expected = torch.autograd.grad(F.cross_entropy(leaf, labels, reduction="sum"), leaf)[0]
    torch.testing.assert_close(logits.detach(), expected)
    loss.backward()
    assert seen["address"] == logits.data_ptr()
    torch.testing.assert_close(leaf.grad, expected)


def test_in_place_leaves_logits_alone_that_need_no_gradient():
    """Evaluation would destroy its predictions."""
    logits, labels, _ = scores()
    before = logits.detach().clone()
    with torch.no_grad():
        cross_entropy(logits, labels, in_place=True)
    cross_entropy(logits.detach(), labels, in_place=True)
    assert torch.equal(logits, before)


def test_in_place_is_noticed_by_whoever_still_needs_the_logits():
    """A backward pass that reads the overwritten logits would go on with wrong numbers."""
    _, labels, leaf = scores()
    logits = leaf.tanh()  # its gradient reads its result
    loss = cross_entropy(logits, labels, in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_place_backward_twice_and_twice_scaled():
    """A retained graph would scale the gradient again and again, since it lies where the logits were."""
    logits, labels, leaf = scores()
    loss = cross_entropy(logits, labels, in_place=True)
    first = torch.autograd.grad(3.7 * loss, leaf, retain_graph=True)[0]
    again = torch.autograd.grad(loss, leaf)[0]
    torch.testing.assert_close(first, 3.7 * again)
    torch.testing.assert_close(again, torch.autograd.grad(F.cross_entropy(leaf, labels), leaf)[0])


def test_in_place_mean_in_bfloat16_divides_in_float32():
    """1 / R would be rounded to bfloat16, and all gradients be too large or too small by the same part."""
    logits, labels, leaf = scores(389, 50, dtype=torch.bfloat16)
    (found,) = torch.autograd.grad(cross_entropy(logits, labels, in_place=True), leaf)
    exact = leaf.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(exact, labels), exact)
    ratio = float((found.double() * expected).sum() / expected.square().sum())
    assert abs(ratio - 1) < 1e-3  # rounding 1 / 389 gives 2.8e-3


def test_in_place_refuses_what_it_would_break():
    """A parameter would be destroyed, a strided view or a second derivative silently be wrong."""
    logits, labels, leaf = scores()
    with pytest.raises(InvalidInput, match="leaf"):
        cross_entropy(leaf, labels, in_place=True)
    with pytest.raises(InvalidInput, match="contiguous"):
        cross_entropy(logits[:, :-1], labels.clamp(max=7), in_place=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(cross_entropy(logits, labels, in_place=True), leaf, create_graph=True)


def test_ignored_rows_may_hold_anything():
    """Padding with nan or infinite logits would spoil the loss and the gradient."""
    logits, labels, leaf = scores(ignored=[1, 4])
    with torch.no_grad():
        logits[1], logits[4] = float("nan"), float("inf")
    loss = cross_entropy(logits, labels, label_smoothing=0.1, softcap=5.0)
    (found,) = torch.autograd.grad(loss, leaf)
    assert torch.isfinite(loss) and torch.isfinite(found).all()
    assert torch.equal(found[[1, 4]], torch.zeros(2, 9, dtype=torch.float64)) and found[0].abs().min() > 0


def test_all_rows_ignored_and_no_rows():
    """A batch of padding only, or an empty one, would raise or spoil the weights with nan gradients."""
    logits, labels, leaf = scores(ignored=range(11))
    loss = cross_entropy(logits, labels)
    assert torch.isnan(loss)
    assert torch.equal(torch.autograd.grad(loss, leaf)[0], torch.zeros_like(leaf))
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    assert cross_entropy(torch.zeros(2, 0, 9), nothing, reduction="none").shape == (2, 0)
    assert cross_entropy(torch.zeros(2, 0, 9), nothing, reduction="sum") == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("in_place", [False, True])
def test_half_precision_loss_is_float32_and_exact(dtype, in_place):
    """The loss would carry half precision's rounding error, or the gradient more than its own rounding."""
    logits, labels, leaf = scores(300, 1000, dtype=dtype)
    exact = leaf.detach().double().requires_grad_()
    truth = F.cross_entropy(exact, labels, reduction="sum")
    loss = cross_entropy(logits, labels, reduction="sum", in_place=in_place)
    assert loss.dtype == torch.float32 and abs(loss.item() / truth.item() - 1) < 1e-6
    found, expected = torch.autograd.grad(loss, leaf)[0].double(), torch.autograd.grad(truth, exact)[0]
    assert (found - expected).norm() / expected.norm() < torch.finfo(dtype).eps / 2


def test_confident_and_extreme_logits_stay_exact():
    """Softmax would overflow, or the loss of a confident prediction drown in the size of its logits."""
    logits = torch.tensor([[1e4, 1e4 - 20, -1e4], [0.0, -1e30, -1e30]], requires_grad=True)
    losses = cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
    assert losses[0].item() == pytest.approx(torch.log1p(torch.exp(torch.tensor(-20.0))).item(), rel=1e-3, abs=1e-7)
    assert losses[1].item() == 0
    assert torch.isfinite(torch.autograd.grad(losses.sum(), logits)[0]).all()


def test_leading_dimensions_and_single_rows():
    """(batch, length, V) logits or one row would fail or give another shape than torch's."""
    logits, labels, _ = scores(rows=12)
    expected = F.cross_entropy(logits, labels, reduction="none")
    cube = cross_entropy(logits.view(3, 4, 9), labels.view(3, 4), reduction="none")
    torch.testing.assert_close(cube, expected.view(3, 4))
    torch.testing.assert_close(cross_entropy(logits[0], labels[0], reduction="none"), expected[0])


def test_second_derivatives_are_right_and_forward_mode_refused():
    """A Hessian would be wrong, a tangent come out as zero."""
    _, labels, leaf = scores(4, 3)
    options = {"z_loss": 0.1, "softcap": 3.0, "label_smoothing": 0.1}
    for reduction in ("mean", "none"):
        assert torch.autograd.gradgradcheck(
            lambda z, r=reduction: cross_entropy(z, labels, reduction=r, **options), leaf
        )
    with pytest.raises(InvalidInput, match="forward mode"):
        torch.func.jvp(lambda z: cross_entropy(z, labels), (leaf.detach(),), (leaf.detach(),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.full((11,), 9)}, r"label 9 is outside \[0, 9\)"),
        ({"target": torch.full((11,), -1)}, "label -1 is outside"),
        ({"target": torch.zeros(10, dtype=torch.int64)}, r"labels of shape \(11,\)"),
        ({"target": torch.zeros(11, 9)}, "class probabilities are not supported"),
        ({"target": torch.zeros(11, dtype=torch.int32)}, "int64"),
        ({"target": torch.zeros(11, dtype=torch.int64, device="meta")}, "on meta"),
        ({"logits": torch.zeros(11, 9, dtype=torch.int64)}, "floating point"),
        ({"logits": torch.zeros(11, 0)}, "V > 0"),
        ({"logits": torch.zeros(())}, r"\(..., V\)"),
        ({"weight": torch.zeros(8)}, r"weight must have shape \(9,\)"),
        ({"reduction": "average"}, "mean, sum, none"),
        ({"label_smoothing": 1.5}, r"in \[0, 1\]"),
        ({"z_loss": float("nan")}, "at least 0"),
        ({"softcap": 0.0}, "above 0"),
    ],
)
@pytest.mark.parametrize("in_place", [False, True])
def test_bad_input_is_one_clear_error(change, message, in_place):
    """A wrong shape, dtype, label or option would give a wrong number or an error from the depths of torch."""
    logits, labels, _ = scores()
    before = logits.detach().clone()
    with pytest.raises(InvalidInput, match=message):
        cross_entropy(**{"logits": logits, "target": labels, "in_place": in_place, **change})
    assert torch.equal(logits, before)


def test_options_are_those_of_the_linear_one():
    """Users would have to learn two sets of names."""
    import inspect

    ours = set(inspect.signature(cross_entropy).parameters)
    linear = set(inspect.signature(linear_cross_entropy).parameters)
    assert ours - linear == {"logits", "in_place"}
    assert linear - ours == {"input", "linear_weight", "linear_bias", "chunk_size", "accumulate_dtype"}


def test_all_options_together_agree_with_the_plain_reference():
    """Two options that are right alone would disturb each other."""
    from assay.kernels import cross_entropy_reference

    _, labels, leaf = scores(ignored=[5])
    for smoothing, z_loss, softcap, weighted in itertools.product((0, 0.2), (0, 0.1), (None, 2.0), (False, True)):
        weight = torch.linspace(0, 2, 9, dtype=torch.float64) if weighted else None
        options = {"label_smoothing": smoothing, "z_loss": z_loss, "softcap": softcap, "weight": weight}
        found, expected = cross_entropy(leaf, labels, **options), cross_entropy_reference(leaf, labels, **options)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient(found, leaf), gradient(expected, leaf), rtol=1e-10, atol=1e-13)
