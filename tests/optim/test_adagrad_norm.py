"""AdaGradNorm against its recursion in float64."""

from __future__ import annotations

import math

import pytest
import torch

from assay.errors import InvalidInput
from assay.optim.adagrad_norm import AdaGradNorm


@pytest.mark.parametrize("granularity", ["global", "tensor", "row"])
def test_steps_follow_the_recursion(granularity):
    """The accumulator would be of other entries than its name says."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (4,)]
    start = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    params = [torch.nn.Parameter(x.clone()) for x in start]
    optimizer = AdaGradNorm([{"params": params[:1]}, {"params": params[1:], "lr": 0.2}], 0.5, 0.1, 0.01, granularity)
    sums = [torch.full((3, 1), 0.1).double(), torch.full((), 0.1).double()]
    for _ in range(4):
        grads = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()
        grads = [g + 0.01 * x for g, x in zip(grads, start, strict=True)]
        squares = [g.square().sum() for g in grads]
        if granularity == "global":
            sums = [s + sum(squares) for s in sums]
        elif granularity == "tensor":
            sums = [s + q for s, q in zip(sums, squares, strict=True)]
        else:
            sums = [sums[0] + grads[0].square().sum(1, keepdim=True), sums[1] + squares[1]]
        start = [x - lr * g / s.sqrt() for x, g, s, lr in zip(start, grads, sums, (0.5, 0.2), strict=True)]
    for p, x in zip(params, start, strict=True):
        torch.testing.assert_close(p.detach(), x)


def test_one_sum_counts_for_parameters_without_a_gradient_and_for_late_ones():
    """A layer that was frozen at first would take steps as long as if nothing had happened before."""
    a, b, c = (torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(3))
    optimizer = AdaGradNorm([{"params": [a]}, {"params": [b], "lr": 2.0}], lr=1.0, initial_accumulator=1.0)
    for _ in range(3):
        a.grad = torch.full_like(a, 10.0)
        optimizer.step()
    optimizer.add_param_group({"params": [c]})
    a.grad, b.grad, c.grad = None, torch.ones_like(b), torch.full_like(c, 2.0)
    optimizer.step()
    root = (1 + 3 * 100 + 1 + 4) ** 0.5
    assert b.item() == pytest.approx(-2 / root) and c.item() == pytest.approx(-2 / root)
    assert {float(optimizer.state[p]["sum"]) for p in (a, b, c)} == {306.0}


@pytest.mark.parametrize("granularity", ["global", "tensor", "row"])
def test_a_sum_of_half_precision_survives_a_restart(granularity):
    """Loaded in the parameters' type, 120000 would be infinite in float16, and 1200 + 4 no more in bfloat16."""
    for dtype, size in ((torch.float16, 200.0), (torch.bfloat16, 20.0)):
        x, y = (torch.nn.Parameter(torch.ones(3, 1, dtype=dtype)) for _ in range(2))
        optimizer, resumed = (AdaGradNorm([p], lr=0.1, granularity=granularity) for p in (x, y))
        for _ in range(3):
            x.grad = torch.full_like(x, size)
            optimizer.step()
        resumed.load_state_dict(optimizer.state_dict())
        y.data.copy_(x.data)
        for p, o in ((x, optimizer), (y, resumed)):
            p.grad = torch.full_like(p, 2.0)
            o.step()
        assert torch.equal(x, y) and torch.equal(optimizer.state[x]["sum"], resumed.state[y]["sum"])
        assert resumed.state[y]["sum"].isfinite().all()


def test_on_a_quadratic_the_step_adapts_to_its_curvature():
    """Without the accumulator, a step of 100 over the curvature would diverge (Ward et al. 2019, section 2)."""
    x = torch.nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    optimizer = AdaGradNorm([x], lr=1.0)
    for _ in range(3000):
        optimizer.zero_grad()
        (50 * x.square()).sum().backward()
        optimizer.step()
    assert abs(float(x.detach())) < 1e-6


@pytest.mark.parametrize(
    "options",
    [{"lr": -0.1}, {"lr": math.nan}, {"weight_decay": -1.0}, {"initial_accumulator": 0.0}, {"granularity": "layer"}],
)
def test_bad_options_are_refused(options):
    """A division by zero, or an option that nobody reads, would come up in the middle of a run."""
    with pytest.raises(InvalidInput):
        AdaGradNorm([torch.nn.Parameter(torch.ones(1))], **options)


def test_sparse_gradients_are_refused():
    """Their norm would be taken of the wrong entries."""
    weight = torch.nn.Parameter(torch.ones(3, 2))
    weight.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(InvalidInput, match="dense"):
        AdaGradNorm([weight]).step()
