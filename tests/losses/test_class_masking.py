"""Masked cross-entropy against cross-entropy on the columns that are left."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from assay.errors import InvalidInput
from assay.losses.class_masking import MaskedCrossEntropy, masked_cross_entropy


def _batch(labels):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(len(labels), 6, generator=generator, dtype=torch.float64, requires_grad=True)
    return scores, torch.tensor(labels)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_is_cross_entropy_on_the_columns_of_the_batchs_classes(reduction):
    """Another class counts, or one of the batch's does not."""
    scores, targets = _batch([4, 1, 1, 5])
    kept = [1, 4, 5]
    expected = F.cross_entropy(scores[:, kept], torch.tensor([1, 0, 0, 2]), reduction=reduction)
    assert torch.allclose(masked_cross_entropy(scores, targets, reduction), expected, rtol=1e-14)


def test_absent_classes_get_no_gradient_at_all():
    """Scores of classes that the batch does not show are pushed down, be it by rounding."""
    scores, targets = _batch([4, 1, 1, 5])
    (gradient,) = torch.autograd.grad(masked_cross_entropy(scores, targets), scores)
    assert (gradient[:, [0, 2, 3]] == 0).all() and (gradient[:, [1, 4, 5]] != 0).all()
    (plain,) = torch.autograd.grad(F.cross_entropy(scores, targets), scores)
    assert (plain[:, [0, 2, 3]] > 0).all(), "what masking is against"


def test_with_all_classes_in_the_batch_nothing_is_masked():
    """The loss differs from cross-entropy where it must not."""
    scores, targets = _batch([0, 1, 2, 3, 4, 5, 0])
    assert torch.allclose(masked_cross_entropy(scores, targets), F.cross_entropy(scores, targets), rtol=1e-14)


def test_a_batch_of_one_class_teaches_nothing():
    """Loss or gradient is not 0, or is not a number."""
    scores, targets = _batch([3, 3])
    loss = masked_cross_entropy(scores, targets)
    assert loss == 0 and (torch.autograd.grad(loss, scores)[0] == 0).all()


def test_the_callers_scores_stay_as_they_were():
    """Predictions read after the loss would know the batch's classes."""
    scores, targets = _batch([4, 1])
    before = scores.detach().clone()
    masked_cross_entropy(scores, targets)
    assert torch.equal(scores, before)


def test_options_are_checked():
    """An unknown reduction is taken."""
    with pytest.raises(InvalidInput, match="reduction"):
        MaskedCrossEntropy(reduction="median")
