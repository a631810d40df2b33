"""Counting what an update costs."""

from __future__ import annotations

import torch
from torch import nn

from assay.lab.cost import counted
from assay.lab.experiment import Experiment
from assay.streams import Streams


def test_the_cost_of_an_mlp_is_that_of_the_closed_form():
    """FLOPs of one update are 6 per weight and sample, less the input gradient of the first layer."""
    experiment = Experiment(
        data="digits",
        model="mlp(width=16, depth=1)",
        optimizer="sgd(lr=0.1)",
        epochs=1,
        batch_size=100,
        count_cost=True,
    )
    cost = experiment(Streams("cost", 0)).resources
    first, second = 64 * 16, 16 * 10
    assert cost["flops_per_update"] == 2 * 100 * (2 * first + 3 * second)
    kept = 100 * (64 + 16 + 10) * 4
    assert kept <= cost["saved_bytes"] <= 2 * kept


def test_bytes_are_counted_at_their_peak():
    """Two graphs one after the other hold half of what they hold together."""
    layer, x = nn.Linear(8, 8), torch.ones(100, 8)

    def cost(together):
        found = {}
        with counted(found, layer):
            first = torch.tanh(layer(x)).sum()
            if not together:
                first.backward()
            second = torch.tanh(layer(x + 1)).sum()
            (first + second if together else second).backward()
        return found["saved_bytes"]

    assert cost(together=True) >= 1.5 * cost(together=False)


def test_gradients_asked_for_by_name_are_counted_too() -> None:
    """Rules that call autograd.grad on leaves would end in an error of the counter's own hooks on modules."""
    cost: dict[str, float] = {}
    layer = nn.Linear(4, 3)
    x = torch.ones(2, 4, requires_grad=True)
    with counted(cost, layer):
        torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])
    # forward, gradient by the weight and gradient by the input: 2 * 2 * 4 * 3 operations each
    assert cost["flops_per_update"] == 3 * 48
