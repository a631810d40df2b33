"""IRM's penalty against the derivative that defines it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from assay.errors import InvalidInput
from assay.losses.irm import IRMPenalty, irm_penalty

from .domain_batches import domains, linear


@pytest.mark.parametrize("classes", [3, 1])
def test_penalty_is_the_squared_derivative_by_a_factor_on_the_scores(classes: int) -> None:
    """The closed form would be another derivative, in value or in what training follows."""
    (z, y), head = domains(classes=classes), linear(classes=classes)
    z = [a.requires_grad_() for a in z]
    terms = []
    for a, b in zip(z, y, strict=True):
        w = torch.ones((), dtype=torch.float64, requires_grad=True)
        f = w * head(a)
        loss = F.cross_entropy(f, b) if classes > 1 else F.binary_cross_entropy_with_logits(f[:, 0], b.double())
        terms.append(torch.autograd.grad(loss, w, create_graph=True)[0] ** 2)
    expected = torch.stack(terms)
    assert torch.allclose(irm_penalty(z, y, head, reduction="none"), expected, rtol=1e-10)
    wanted = [*z, *head.parameters()]
    ours = torch.autograd.grad(IRMPenalty()(z, y, head), wanted)
    for a, b in zip(ours, torch.autograd.grad(expected.mean(), wanted), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-14)


def test_one_domain_is_refused() -> None:
    """Invariance over one domain would be trained silently."""
    (z, y), head = domains(), linear()
    with pytest.raises(InvalidInput, match="1 domain"):
        IRMPenalty()(z[:1], y[:1], head)
