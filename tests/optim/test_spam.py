"""SPAM against its steps written entry by entry, and torch's AdamW in the limit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim.spam import SPAM


def spiky(steps: int) -> list[Tensor]:
    """Gradients of which one in ten is a spike."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(steps, 6, generator=generator, dtype=torch.float64)
    return list(plain * (1 + 50 * (torch.rand(steps, 6, generator=generator) < 0.1)))


def run(gradients: list[Tensor], kind: Any, **options: Any) -> Tensor:
    """Step from ones on given gradients and return the weights."""
    parameter = torch.ones_like(gradients[0]).requires_grad_()
    optimizer = kind([parameter], **options)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(parameter.grad, gradient), "the gradient was changed"
    return parameter.detach()


def slow(gradients: list[Tensor], lr: float, threshold: float, reset: int, warmup: int, after: int) -> Tensor:
    """The official code's step, one entry at a time, with its counters."""
    weights = []
    for i in range(len(gradients[0])):
        w, m, v, current = 1.0, 0.0, 0.0, warmup + 1  # counted as if a warm-up had just ended
        for t, gradient in enumerate(gradients, start=1):
            g = gradient[i].item()
            c = 1.0 if current >= warmup else 1 - 0.99 * (1 + math.cos(math.pi * current / (warmup + 1))) / 2
            if t % reset == 0:
                m = v = 0.0
            if t >= after and t % reset >= after and g * g > threshold * v:
                g = math.copysign(math.sqrt(threshold * v), g)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            w -= c * lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (math.sqrt(v) + 1e-6)
            w -= lr * 0.1 * w
            current = 0 if (t + 1) % reset == 0 else current + 1
        weights.append(w)
    return torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize(("reset", "warmup", "after"), [(25, 10, 4), (12, 30, 0), (200, 5, 20)])
def test_the_steps(reset: int, warmup: int, after: int) -> None:
    """A clipped entry, a reset or the rate after it would not be the official code's."""
    gradients = spiky(60)
    options = {"reset_every": reset, "warmup": warmup, "clip_after": after}
    found = run(gradients, SPAM, lr=0.02, threshold=30.0, weight_decay=0.1, **options)
    torch.testing.assert_close(found, slow(gradients, 0.02, 30.0, reset, warmup, after), rtol=1e-12, atol=1e-13)
    unclipped = slow(gradients, 0.02, math.inf, reset, warmup, after)
    assert (found - unclipped).abs().max() > 1e-3, "the test clips nothing"


def test_without_its_parts_it_is_adamw() -> None:
    """The Adam at its centre would be another one (its eps stands before the bias correction)."""
    options: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.99), "eps": 0.0, "weight_decay": 0.0}
    found = run(spiky(20), SPAM, **options, threshold=None, reset_every=0)
    torch.testing.assert_close(found, run(spiky(20), torch.optim.AdamW, **options), rtol=1e-12, atol=1e-14)


def test_compiled_whole_it_takes_the_same_steps() -> None:
    """The step would have a graph break, or differ when compiled."""
    torch._dynamo.reset()
    gradients = [g.float() for g in spiky(12)]
    options = {"lr": 0.02, "reset_every": 5, "clip_after": 2, "threshold": 30.0, "weight_decay": 0.1}
    expected = run(gradients, SPAM, **options)
    parameter = torch.ones(6, requires_grad=True)
    step = torch.compile(SPAM([parameter], **options).step, fullgraph=True, backend="eager")
    for gradient in gradients:
        parameter.grad = gradient.clone()
        step()
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_reset_forgets_an_overflow(compiled: bool) -> None:
    """0 times a mean square that is infinite is NaN, so that a reset would lose the weight instead of saving it."""
    torch._dynamo.reset()
    # 0.001 * 20000^2 is infinite in float16, and so is the step's denominator: the weight stands still until the reset
    parameter = torch.ones(2, dtype=torch.float16, requires_grad=True)
    optimizer = SPAM([parameter], lr=0.1, reset_every=4, warmup=0, eps=1e-3)
    step = torch.compile(optimizer.step, fullgraph=True, backend="eager") if compiled else optimizer.step
    for gradient in (1.0, 1.0, 20000.0):
        parameter.grad = torch.tensor([1.0, gradient], dtype=torch.float16)
        step()
    assert optimizer.state[parameter]["exp_avg_sq"][1].isinf()
    before = parameter.detach().clone()
    parameter.grad = torch.ones(2, dtype=torch.float16)
    step()
    moved = before - parameter.detach()
    assert moved[0] > 0.01
    torch.testing.assert_close(moved[1], moved[0], rtol=0, atol=1e-3)
    torch._dynamo.reset()


def test_an_infinite_entry_is_clipped_and_a_nan_stays() -> None:
    """One infinite entry would spoil its weight, or a NaN be hidden."""
    gradients = [torch.ones(3), torch.ones(3), torch.tensor([math.inf, math.nan, 1.0])]
    found = run_nan(gradients)
    assert found[0].isfinite() and found[1].isnan() and found[2].isfinite()


def run_nan(gradients: list[Tensor]) -> Tensor:
    """Step with a NaN among the gradients, which equals nothing."""
    parameter = torch.ones(3, requires_grad=True)
    optimizer = SPAM([parameter], clip_after=2)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize(
    "options",
    [{"lr": -1.0}, {"threshold": 0.0}, {"reset_every": -1}, {"warmup": 1.5}, {"clip_after": True}, {"betas": (0.9, 1)}],
    ids=str,
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    """A typing error would train, badly."""
    with pytest.raises(InvalidInput, match=next(iter(options))):
        SPAM([torch.zeros(1, requires_grad=True)], **options)
