"""LAMB against its six lines in NumPy, AdamW without ratios, and the length of its steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.optim.lamb import LAMB, lamb_direction, trust_ratio

SHAPES = ((4, 3), (5,), (2, 3, 2))


def generator(seed=0):
    """A generator of a test's own."""
    return torch.Generator().manual_seed(seed)


def parameters(*shapes):
    """Random float64 parameters, the same in every call."""
    own = generator()
    return [torch.nn.Parameter(torch.randn(shape, generator=own, dtype=torch.float64)) for shape in shapes]


def run(optimizer, params, steps=20, scale=1.0):
    """Step with seeded gradients, times a scale."""
    own = generator(1)
    for _ in range(steps):
        for p in params:
            p.grad = scale * torch.randn(p.shape, generator=own, dtype=torch.float64)
        optimizer.step()


def by_hand(lr, betas, eps, decay, corrected, clip, steps=20):
    """The algorithm in NumPy, one tensor after the other."""
    own = generator(1)
    values = [p.detach().numpy().copy() for p in parameters(*SHAPES)]
    moments = [(np.zeros_like(x), np.zeros_like(x)) for x in values]
    for t in range(1, steps + 1):
        for i, x in enumerate(values):
            g = torch.randn(x.shape, generator=own, dtype=torch.float64).numpy()
            m, v = moments[i]
            m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
            moments[i] = m, v
            m_hat, v_hat = (m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)) if corrected else (m, v)
            u, ratio = m_hat / (np.sqrt(v_hat) + eps), 1.0
            if x.ndim >= 2:
                u = u + decay * x
                ratio = np.clip(np.linalg.norm(x), *clip) / np.linalg.norm(u)
            values[i] = x - lr * ratio * u
    return values


@pytest.mark.parametrize(
    ("corrected", "clip"), [(True, (None, None)), (False, (None, None)), (True, (0.5, 2.0)), (True, (None, 3.0))]
)
def test_steps_against_the_algorithm(corrected, clip):
    """A moment, a correction, the decay, the ratio, its limits or what is left out would be wrong."""
    options = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3}
    params = parameters(*SHAPES)
    run(LAMB(params, **options, weight_decay=0.1, bias_correction=corrected, trust_clip=clip), params)
    bounds = (0 if clip[0] is None else clip[0], np.inf if clip[1] is None else clip[1])
    for p, expected in zip(params, by_hand(**options, decay=0.1, corrected=corrected, clip=bounds), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_without_adaptation_it_is_adamw():
    """With ratio 1, decay inside u is decoupled decay, and every step must be that of torch's AdamW."""
    ours, theirs = parameters(*SHAPES), parameters(*SHAPES)
    options = {"lr": 0.03, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    run(LAMB(ours, **options, layer_adaptation=False, min_ndim=0), ours)
    run(torch.optim.AdamW(theirs, **options), theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_step_is_lr_times_the_norm_of_the_weights():
    """The one thing LAMB is about."""
    params = parameters((6, 5), (3, 2, 2), (7,))
    optimizer = LAMB(params, lr=0.03, weight_decay=0.2)
    for _ in range(5):
        before = [p.detach().clone() for p in params]
        run(optimizer, params, steps=1)
        moved = [((p.detach() - b).norm() / b.norm()).item() for p, b in zip(params, before, strict=True)]
        assert moved[:2] == pytest.approx([0.03, 0.03], rel=1e-12)
        assert moved[2] != pytest.approx(0.03, rel=0.1), "a bias is not adapted"


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_loss_scale_changes_nothing_and_the_weights_scale_only_the_step(scale):
    """Without decay and eps, relative steps must depend neither on the loss's scale nor on the weights'."""
    plain, scaled = parameters((4, 3), (3, 3)), parameters((4, 3), (3, 3))
    with torch.no_grad():
        scaled[0].mul_(scale)
    run(LAMB(plain, lr=0.1, eps=0.0, weight_decay=0.0), plain)
    run(LAMB(scaled, lr=0.1, eps=0.0, weight_decay=0.0), scaled, scale=1 / scale)
    torch.testing.assert_close(scaled[0] / scale, plain[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scaled[1], plain[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clip", [(None, None), (0.01, 10.0)])
def test_zero_weights_leave_zero(clip):
    """A layer that starts at 0 would be divided by 0, stay at 0 for ever or, with a lower limit, nearly so."""
    p = torch.nn.Parameter(torch.zeros(3, 3))
    optimizer = LAMB([p], lr=0.1, weight_decay=0.0, trust_clip=clip)
    p.grad = torch.ones(3, 3)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((3, 3), -0.1))


def test_groups_may_leave_adaptation_out():
    """The options of a group would be ignored, or all tensors of an optimizer treated alike."""
    adapted, plain = parameters((4, 3), (4, 3))
    optimizer = LAMB([{"params": [adapted]}, {"params": [plain], "layer_adaptation": False}], lr=0.1, weight_decay=0.0)
    before = plain.detach().clone()
    run(optimizer, [adapted, plain], steps=1)
    torch.testing.assert_close((plain.detach() - before).abs(), torch.full_like(before, 0.1), rtol=1e-4, atol=0)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_ratio_takes_the_update_to_the_weights_norm(weight, update):
    """The ratio would not be |x| / |u|, or not 1 where one of them is 0."""
    ratio = trust_ratio(torch.tensor(weight, dtype=torch.float64), torch.tensor(update, dtype=torch.float64)).item()
    assert ratio == pytest.approx(weight / update if weight > 0 and update > 0 else 1.0)


def test_the_direction_is_that_of_a_step():
    """The function that the probe uses would not be what the optimizer does."""
    (p,) = parameters((4, 3))
    optimizer = LAMB([p], lr=0.1, weight_decay=0.3, layer_adaptation=False)
    run(optimizer, [p], steps=2)
    before = p.detach().clone()
    run(optimizer, [p], steps=1)
    state = optimizer.state[p]
    u = lamb_direction(before, state["exp_avg"], state["exp_avg_sq"], 3, weight_decay=0.3)
    torch.testing.assert_close(p.detach(), before - 0.1 * u, rtol=0, atol=1e-12)


def test_bad_options_are_refused():
    """Limits in the wrong order or complex weights would give a silent number."""
    (p,) = parameters((2, 2))
    for clip in ((2.0, 1.0), (-1.0, None), (float("nan"), None)):
        with pytest.raises(InvalidInput, match="trust_clip must be"):
            LAMB([p], trust_clip=clip)
    with pytest.raises(InvalidInput, match="min_ndim must be"):
        LAMB([p], min_ndim=-1)
    with pytest.raises(InvalidInput, match="real parameters"):
        LAMB([torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])
