"""The kernels' conformance checks must catch what they are there for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from assay.testing.kernels import CASES, CHECKS

GOOD = CASES["linear-cross-entropy"]()


class Halved(torch.autograd.Function):
    """The identity with half its gradient."""

    @staticmethod
    def forward(ctx, x):
        """Return x."""
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        """Return half the gradient, as a constant."""
        return gradient.detach() / 2


def shifted(*tensors):
    """A slightly wrong result."""
    return GOOD.call(*tensors) * 1.001


def half_gradient(*tensors):
    """A right result with a wrong gradient."""
    return Halved.apply(GOOD.call(*tensors))


def drawing(*tensors):
    """A right result at the expense of the global generator."""
    return GOOD.call(*tensors) + 0 * torch.rand(())


def overwriting(hidden, *rest):
    """A right result that destroys an input."""
    result = GOOD.call(hidden, *rest)
    with torch.no_grad():
        hidden.zero_()
    return result


def breaking_the_graph(*tensors):
    """A right result that reads a value on the way."""
    result = GOOD.call(*tensors)
    return result if result.item() > 0 else -result


def reading_memory(hidden, weight, *rest):
    """A right result for contiguous tensors only."""
    flat = torch.as_strided(weight, weight.shape, (weight.shape[1], 1))
    return GOOD.call(hidden, flat, *rest)


@pytest.mark.parametrize(
    ("check", "call"),
    [
        ("agreement", shifted),
        ("agreement", half_gradient),
        ("gradient", half_gradient),
        ("second-derivative", lambda *tensors: Halved.apply(GOOD.reference(*tensors))),
        ("generators", drawing),
        ("inputs-kept", overwriting),
        ("compiled", breaking_the_graph),
        ("strides", reading_memory),
    ],
)
def test_a_broken_kernel_is_caught(check, call):
    """A conformance check would pass whatever it is given."""
    broken = dataclasses.replace(GOOD, call=call)
    with pytest.raises(AssertionError):
        CHECKS[check](lambda: broken)
