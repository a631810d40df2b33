"""LARS against its two lines, and the length of its steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assay.optim.lars import LARS


def generator(seed=0):
    """A generator of a test's own."""
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("clip", [(None, None), (0.5, 2.0)])
def test_steps_against_the_algorithm(clip):
    """The momentum, the decay within it, the ratio, its limits or what is left out would be wrong."""
    own, shapes = generator(), ((4, 3), (5,), (2, 3, 2))
    params = [torch.nn.Parameter(torch.randn(shape, generator=own, dtype=torch.float64)) for shape in shapes]
    values, moments = [p.detach().numpy().copy() for p in params], [np.zeros(shape) for shape in shapes]
    optimizer = LARS(params, lr=0.05, momentum=0.8, weight_decay=0.1, trust_clip=clip)
    low, high = (0, np.inf) if clip == (None, None) else clip
    for _ in range(20):
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=own, dtype=torch.float64)
            x, g, adapted = values[i], p.grad.numpy(), p.ndim >= 2
            moments[i] = 0.8 * moments[i] + 0.2 * (g + (0.1 * x if adapted else 0))
            ratio = np.clip(np.linalg.norm(x), low, high) / np.linalg.norm(moments[i]) if adapted else 1
            values[i] = x - 0.05 * ratio * moments[i]
        optimizer.step()
    for p, expected in zip(params, values, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_without_momentum_and_decay_the_step_has_the_weights_length_along_the_gradient():
    """The step would not be lr |x| g / |g|."""
    own = generator()
    p = torch.nn.Parameter(torch.randn(3, 4, generator=own, dtype=torch.float64))
    p.grad = 1e-6 * torch.randn(3, 4, generator=own, dtype=torch.float64)
    expected = p.detach() - 0.1 * p.detach().norm() * p.grad / p.grad.norm()
    LARS([p], lr=0.1, momentum=0.0, weight_decay=0.0).step()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=0)


def test_zero_gradients_move_nothing():
    """0 / 0 would give NaN."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    p.grad = torch.zeros(2, 2)
    LARS([p], weight_decay=0.0).step()
    assert torch.equal(p.detach(), torch.ones(2, 2))
