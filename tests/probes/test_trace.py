import random

import numpy as np
import pytest
import torch
from torch import nn

from assay.probes._trace import untouched
from assay.testing._shared import assert_bit_equal


class Careless(nn.Module):
    """Changes everything it can in a forward pass."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.layer = nn.Linear(3, 2)
        self.generator = torch.Generator().manual_seed(5)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("replaced", torch.zeros(2))

    def forward(self, x):
        """Leave traces."""
        self.calls += 1
        self.replaced = torch.rand(2, generator=self.generator)
        random.random(), np.random.rand(), torch.rand(1)
        return self.layer(self.norm(x))


def snapshot(model):
    """Everything that may change."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "training": [m.training for m in model.modules()],
        "flags": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "hooks": [sorted(m._forward_hooks) for m in model.modules()],
        "random": [torch.get_rng_state(), np.random.get_state(), random.getstate(), model.generator.get_state()],
        "buffers": [id(b) for b in model.buffers()],
    }


@pytest.mark.parametrize("fail", [False, True])
def test_everything_is_put_back(fail):
    """A mode, flag, gradient, buffer, hook or random state stays changed, with or without an error inside."""
    model, x = Careless(), torch.randn(8, 3)
    model(x).sum().backward()
    model.norm.eval()
    model.layer.bias.grad = None
    kept, before = model.layer.weight.grad, snapshot(model)
    values = kept.clone()
    handle = model.layer.register_forward_hook(lambda *_: None)
    handle.remove()
    with pytest.raises(RuntimeError, match="inside") if fail else untouched(), untouched(model):
        model.train()
        model.layer.register_forward_hook(lambda *_: None)
        model(x).sum().backward()
        model.layer.weight.grad.mul_(3)
        model.requires_grad_(False)
        if fail:
            raise RuntimeError("inside")
    assert_bit_equal(snapshot(model), before, "the model")
    assert model.layer.weight.grad is kept and torch.equal(kept, values)


def test_hooks_of_the_user_stay_in_their_order():
    """A hook that was removed inside is lost, or hooks run in another order."""
    layer, calls = nn.Linear(1, 1), []
    first = layer.register_forward_hook(lambda *_: calls.append("first"))
    layer.register_forward_hook(lambda *_: calls.append("second"))
    with untouched(layer):
        first.remove()
    layer(torch.ones(1, 1))
    assert calls == ["first", "second"]


def test_a_graph_in_flight_survives():
    """Measuring between forward and backward pass breaks the user's backward pass."""
    model, x = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), torch.randn(8, 3)
    loss = model.eval()(x).sum()
    with untouched(model), torch.no_grad():
        model.eval()(x)
    loss.backward()
    assert model[1].weight.grad is not None


def test_parameters_are_not_copied():
    """The guard's memory grows with the network."""
    model = nn.Linear(2000, 2000)
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler,
        untouched(model),
    ):
        pass
    assert sum(max(0, event.cpu_memory_usage) for event in profiler.events()) < 100_000
