"""Fish against inner products of autograd's gradients, and against the inner loop that it replaces."""

from __future__ import annotations

import pytest
import torch

from assay.errors import InvalidInput
from assay.losses.fish import FishPenalty, fish_penalty

from .domain_batches import derivatives, domains, flat, linear, loss_of


def test_penalty_is_minus_the_inner_product_of_each_pair() -> None:
    """Pairs would be counted twice, or a domain with itself."""
    (z, y), head = domains(), linear()
    g = [derivatives(head, a, b)[0] for a, b in zip(z, y, strict=True)]
    expected = -torch.stack([g[0] @ g[1], g[0] @ g[2], g[1] @ g[2]])
    assert torch.allclose(fish_penalty(z, y, head, reduction="none"), expected, rtol=1e-10)
    assert torch.allclose(FishPenalty()(z, y, head), expected.mean(), rtol=1e-10)


def test_gradient_is_what_the_inner_loop_adds() -> None:
    """The objective would not be Fish's: going through two domains with small steps adds lr^2 / 2 of its gradient."""
    (z, y), head = domains((8, 8)), linear()
    losses, theta, lr = [loss_of(head, a, b) for a, b in zip(z, y, strict=True)], flat(head), 1e-3
    slopes = [torch.func.grad(loss) for loss in losses]
    ends = []
    for order in ((0, 1), (1, 0)):
        at = theta
        for e in order:
            at = at - lr * slopes[e](at)
        ends.append(at)
    plain = theta - lr * (slopes[0](theta) + slopes[1](theta))
    added = (torch.stack(ends).mean(0) - plain) / (lr**2 / 2)
    (gradient,) = [torch.cat([g.flatten() for g in torch.autograd.grad(FishPenalty()(z, y, head), head.parameters())])]
    assert torch.allclose(-gradient, added, rtol=1e-2, atol=1e-3 * added.abs().max().item())


def test_one_domain_is_refused() -> None:
    """Gradients of one domain would be matched with nothing."""
    (z, y), head = domains(), linear()
    with pytest.raises(InvalidInput, match="1 domain"):
        FishPenalty()(z[:1], y[:1], head)
