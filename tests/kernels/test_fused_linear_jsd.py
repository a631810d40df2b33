from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.kernels import jsd, linear_jsd


def heads(rows=11, features=4, teacher_features=3, classes=9, dtype=torch.float64, seed=0):
    """Input, weight and bias of a student, which want gradients, and of a teacher."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, features), (classes, features), (classes,)]
    shapes += [(rows, teacher_features), (classes, teacher_features), (classes,)]
    drawn = [torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [t.requires_grad_() for t in drawn[:3]], drawn[3:]


def eager(student, teacher, temperature=1.0, **options):
    """What must come out: both logits, both log-softmaxes, then `jsd`, which has tests of its own."""
    x, t = (F.linear(*head).div(temperature).log_softmax(-1) for head in (student, teacher))
    return jsd(x, t, **options)


def ours(student, teacher, **options):
    """The same by the operator."""
    return linear_jsd(*student[:2], *teacher[:2], linear_bias=student[2], teacher_bias=teacher[2], **options)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    classes=st.integers(1, 12),
    chunk_size=st.sampled_from([None, 1, 7, 20]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    beta=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    left_out=st.sets(st.integers(0, 19), max_size=5),
    seed=st.integers(0, 2**16),
)
def test_equals_the_logits_way(rows, classes, chunk_size, reduction, beta, temperature, left_out, seed):
    """Divergence or gradients of some combination of options would differ from the unfused ones in float64."""
    student, teacher = heads(rows, classes=classes, seed=seed)
    labels = torch.zeros(rows, dtype=torch.int64)
    labels[[i for i in left_out if i < rows]] = -100
    options = {"beta": beta, "temperature": temperature, "reduction": reduction, "labels": labels}
    found, expected = ours(student, teacher, chunk_size=chunk_size, **options), eager(student, teacher, **options)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11, equal_nan=True)
    if torch.isnan(expected).any():
        return
    upstream = torch.linspace(-1, 3.7, found.numel(), dtype=torch.float64).view(found.shape)
    for a, e in zip(
        torch.autograd.grad(found, student, upstream), torch.autograd.grad(expected, student, upstream), strict=True
    ):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-11)


def test_forward_divergence_differs_from_cross_entropy_by_a_constant():
    """With beta 0 the student's gradient would not be that of the cross-entropy with the teacher's probabilities."""
    student, teacher = heads()
    probabilities = F.linear(*teacher).softmax(-1)
    found = torch.autograd.grad(ours(student, teacher, beta=0.0), student)
    expected = torch.autograd.grad(F.cross_entropy(F.linear(*student), probabilities), student)
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_divergence_is_float32(dtype):
    """The divergence would carry half precision's rounding errors of every row."""
    student, teacher = heads(256, 32, 16, 500, dtype=dtype)
    with torch.no_grad():
        student[1] /= 8
        teacher[1] /= 8
    exact = eager([t.double() for t in student], [t.double() for t in teacher])
    found = ours(student, teacher, chunk_size=64)
    assert found.dtype == torch.float32 and abs(found.item() / exact.item() - 1) < 1e-3


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_saves_no_logits(reduction):
    """A tensor of the size of the logits would be kept for backward: all memory savings gone."""
    student, teacher = heads(64, 4, 3, 128)
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = ours(student, teacher, chunk_size=8, reduction=reduction)
    assert saved and max(saved) <= 128 * 4
    loss.sum().backward()


def test_the_teacher_gets_no_gradient():
    """Distillation would train the teacher."""
    student, teacher = heads()
    teacher = [t.requires_grad_() for t in teacher]
    ours(student, teacher).backward()
    assert all(t.grad is None for t in teacher) and all(t.grad is not None for t in student)


def test_the_same_head_has_no_divergence():
    """A student that is its teacher would still be moved."""
    student, _ = heads()
    loss = ours(student, [t.detach() for t in student], beta=0.4)
    assert loss.abs() < 1e-14
    assert all(g.abs().max() < 1e-14 for g in torch.autograd.grad(loss, student))


def test_second_order_and_forward_mode_are_refused():
    """A derivative that the op does not have would come out as zero instead of an error."""
    student, teacher = heads()
    for reduction in ("mean", "none"):
        with pytest.raises(RuntimeError, match="second derivative"):
            torch.autograd.grad(ours(student, teacher, reduction=reduction).sum(), student[1], create_graph=True)
    plain = [t.detach() for t in student]
    with pytest.raises(InvalidInput, match="forward mode"):
        torch.func.jvp(lambda w: linear_jsd(plain[0], w, *teacher[:2]), (plain[1],), (plain[1],))


def test_leading_dimensions_and_no_rows():
    """(batch, length, H) states would give another shape, or an empty batch an error."""
    student, teacher = heads(rows=12)
    expected = eager(student, teacher, reduction="none")
    cube = [student[0].view(3, 4, 4), *student[1:]], [teacher[0].view(3, 4, 3), *teacher[1:]]
    torch.testing.assert_close(ours(*cube, reduction="none"), expected.view(3, 4))
    nothing = [student[0][:0], *student[1:]], [teacher[0][:0], *teacher[1:]]
    assert ours(*nothing, reduction="sum") == 0 and torch.isnan(ours(*nothing))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"teacher_input": torch.zeros(10, 3, dtype=torch.float64)},
            r"same leading dimensions, not \(11,\) and \(10,\)",
        ),
        ({"teacher_weight": torch.zeros(8, 3, dtype=torch.float64)}, "same number of classes, not 9 and 8"),
        ({"teacher_weight": torch.zeros(9, 4, dtype=torch.float64)}, r"teacher_weight must be \(V, 3\)"),
        ({"teacher_input": torch.zeros(11, 3)}, "teacher_weight is torch.float64 but teacher_input is torch.float32"),
        ({"linear_weight": torch.zeros(9, 5, dtype=torch.float64)}, r"linear_weight must be \(V, 4\)"),
        ({"linear_bias": torch.zeros(8, dtype=torch.float64)}, r"linear_bias must have shape \(9,\)"),
        ({"input": torch.zeros(11, 4, dtype=torch.int64)}, "floating point"),
        ({"labels": torch.zeros(11)}, "labels must be int64"),
        ({"beta": -0.1}, r"in \[0, 1\]"),
        ({"temperature": 0.0}, "above 0"),
        ({"reduction": "batchmean"}, "mean, sum, none"),
        ({"chunk_size": 0}, "at least 1"),
        ({"accumulate_dtype": torch.int32}, "floating point type"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    """A wrong shape, dtype or option would give a wrong number or an error from the depths of torch."""
    student, teacher = heads()
    arguments = {"input": student[0], "linear_weight": student[1]}
    arguments |= {"teacher_input": teacher[0], "teacher_weight": teacher[1]}
    with pytest.raises(InvalidInput, match=message):
        linear_jsd(**{**arguments, **change})
