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
