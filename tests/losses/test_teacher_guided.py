"""Teacher-guided training against its two terms, and who gets a gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.data.latent_exploration import LatentExploration
from assay.errors import InvalidInput
from assay.losses.distillation import distillation_loss
from assay.losses.teacher_guided import TeacherGuidedLoss


def _networks(classes=(3, 3)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student, teacher = (nn.Linear(4, K).double() for K in classes)
        return student, teacher, torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])


def test_without_exploration_it_is_cross_entropy_and_distillation():
    """Sigma 0 and an identity for a generator must be plain distillation, which is what no exploration is."""
    student, teacher, x, y = _networks()
    expected = F.cross_entropy(student(x), y) + 0.3 * distillation_loss(student(x), teacher(x), 2.0)
    still = LatentExploration(nn.Identity(), nn.Identity(), sigma=0.0)
    for explore in (None, still):
        assert torch.allclose(TeacherGuidedLoss(explore, 0.3, 2.0)(x, y, student, teacher), expected, rtol=1e-12)
    assert torch.allclose(TeacherGuidedLoss(None, 0.0)(x, y, student, teacher), F.cross_entropy(student(x), y))


def test_the_distillation_term_is_on_the_explored_inputs():
    """It is on the labelled ones, or labels are asked of the explored ones."""
    student, teacher, x, y = _networks()
    other = x[:2] + 3
    found = TeacherGuidedLoss(lambda *_: other)(x, y, student, teacher)
    assert torch.allclose(found, F.cross_entropy(student(x), y) + distillation_loss(student(other), teacher(other)))


def test_only_the_student_gets_a_gradient():
    """Teacher, encoder or decoder are trained, or gradients of the exploration are left in the student."""
    student, teacher, x, y = _networks()
    encoder, decoder = nn.Linear(4, 2).double(), nn.Linear(2, 4).double()
    explore = LatentExploration(encoder, decoder, sigma=0.5, eta=1.0)
    criterion = TeacherGuidedLoss(explore)
    assert list(criterion.parameters()) == []
    criterion(x, y, student, teacher).backward()
    assert all(p.grad is None for network in (teacher, encoder, decoder) for p in network.parameters())
    fresh = LatentExploration(encoder, decoder, sigma=0.5, eta=1.0)(x, student, teacher)
    loss = F.cross_entropy(student(x), y) + distillation_loss(student(fresh), teacher(fresh).detach())
    (expected,) = torch.autograd.grad(loss, student.weight)
    assert torch.allclose(student.weight.grad, expected)


def test_bad_input_is_said_in_one_line():
    """Teachers of other classes, labels out of range or a negative weight are taken."""
    student, teacher, x, y = _networks((3, 5))
    with pytest.raises(InvalidInput, match="student has 3 classes and the teacher 5"):
        TeacherGuidedLoss()(x, y, student, teacher)
    with pytest.raises(InvalidInput, match="targets"):
        TeacherGuidedLoss()(x, y + 1, student, teacher)
    with pytest.raises(InvalidInput, match="weight"):
        TeacherGuidedLoss(weight=-1.0)
