"""Distillation against its formula in loops, known gradients and the limit of a high temperature."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from assay.errors import InvalidInput
from assay.losses.distillation import DistillationLoss, distillation_loss


def _scores(seed=0, B=4, K=3):
    return torch.randn(B, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_divergence_from_teacher_to_student_in_loops():
    """The two change places, T^2 is missing, or a softmax has another temperature."""
    b, a, T = _scores(0), _scores(1), 3.0
    total = 0.0
    for i in range(4):
        p = [math.exp(v / T) for v in a[i]]
        q = [math.exp(v / T) for v in b[i]]
        total += sum(x / sum(p) * math.log(x / sum(p) / (y / sum(q))) for x, y in zip(p, q, strict=True))
    assert distillation_loss(b, a, T).item() == pytest.approx(T**2 * total / 4, rel=1e-12)
    assert distillation_loss(b, a, T, reduction="none").shape == (4,)
    assert DistillationLoss(T, "sum")(b, a).item() == pytest.approx(T**2 * total)


def test_the_gradient_is_that_of_soft_cross_entropy():
    """At T = 1 it must be softmax(b) - softmax(a), and 0 where the two agree."""
    b, a = _scores(0).requires_grad_(), _scores(1)
    (gradient,) = torch.autograd.grad(distillation_loss(b, a, reduction="sum"), b)
    assert torch.allclose(gradient, b.softmax(dim=1) - a.softmax(dim=1))
    soft = F.cross_entropy(b, a.softmax(dim=1), reduction="sum")
    entropy = -(a.softmax(dim=1) * a.log_softmax(dim=1)).sum()
    assert torch.allclose(distillation_loss(b, a, reduction="sum"), soft - entropy)
    (gradient,) = torch.autograd.grad(distillation_loss(b, b.detach() + 7), b)
    assert gradient.abs().max() < 1e-15


def test_a_high_temperature_compares_centred_scores():
    """T^2 does not keep the size: the limit is |centred b - a|^2 / (2 K)."""
    b, a = _scores(0), _scores(1)
    apart = (b - a) - (b - a).mean(dim=1, keepdim=True)
    expected = apart.square().sum(dim=1).mean() / 6
    assert torch.allclose(distillation_loss(b, a, 1e4), expected, rtol=1e-3)


def test_student_and_teacher_must_have_the_same_classes():
    """A teacher of other classes is broadcast or cut."""
    with pytest.raises(InvalidInput, match="student has 3 classes and the teacher 5"):
        distillation_loss(_scores(), _scores(K=5))
    with pytest.raises(InvalidInput, match="same samples"):
        distillation_loss(_scores(), _scores(B=1))
    for temperature in (0.0, -1.0, math.inf):
        with pytest.raises(InvalidInput, match="temperature"):
            DistillationLoss(temperature)
