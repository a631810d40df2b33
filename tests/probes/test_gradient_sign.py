"""GradientSign against autograd by hand, and the theorem's expectations over random last layers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.models.transformer_lm import TransformerLM
from assay.nn.top_k import TopK
from assay.probes.gradient_sign import GradientSign
from assay.probes.view import View
from assay.watch import Watch


def seeded(seed=0):
    """A generator."""
    return torch.Generator().manual_seed(seed)


def data(n=24, d=6):
    """Inputs and labels."""
    return torch.randn(n, d, generator=seeded(1), dtype=torch.float64), torch.arange(n) % 4


def network(activation=None):
    """Two hidden layers in float64; the first weight is frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        act = activation or nn.ReLU
        net = nn.Sequential(nn.Linear(6, 16), act(), nn.Linear(16, 12), act(), nn.Linear(12, 4)).double()
    net[0].requires_grad_(False)
    return net


@pytest.mark.parametrize("activation", [nn.ReLU, lambda: nn.ReLU(inplace=True), lambda: TopK(3)])
@pytest.mark.parametrize("size", [24, 7])
def test_equals_autograd_by_hand(activation, size):
    """The derivative would be by another tensor, or batches be weighted wrongly; frozen layers must not matter."""
    net, (x, y) = network(activation), data()
    probe = GradientSign()
    values = probe.measure(View(net), list(zip(x.split(size), y.split(size), strict=True)))
    p = net[0](x).detach().requires_grad_()
    a = net[1](p.clone())
    q = net[2](a)
    b = net[3](q.clone())
    gradients = torch.autograd.grad(F.cross_entropy(net[4](b), y, reduction="sum"), (p, q))
    for name, active, g in (("1", a != 0, gradients[0]), ("3", b != 0, gradients[1])):
        assert values[f"active_gradient/{name}"] == pytest.approx(g[active].mean().item(), rel=1e-9)
        of_neuron = torch.stack([g[:, i][active[:, i]].mean() for i in range(active.shape[1])])
        torch.testing.assert_close(probe.gradients[name], of_neuron, equal_nan=True)
        seen = of_neuron[~of_neuron.isnan()]
        assert values[f"active_gradient_positive/{name}"] == pytest.approx((seen > 0).double().mean().item())
    assert all(parameter.grad is None for parameter in net.parameters())


def active_means(p, draws, loss, deviation):
    """Each active unit's derivative by the probe, averaged over random last layers."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(len(p), 5, bias=False)).double()
    view, generator, total = View(nn.Sequential(nn.Identity(), *model), loss=loss), seeded(), 0.0
    for _ in range(draws):
        nn.init.normal_(model[1].weight, std=deviation, generator=generator)
        probe = GradientSign()
        probe.measure(view, [(p[None], torch.tensor([2]))])
        total = total + probe.gradients["1"]
    return (total / draws)[p > 0]


def squared(scores, targets):
    """1/2 |f - e_y|^2."""
    return 0.5 * (scores - F.one_hot(targets, scores.shape[1])).square().sum(1).mean()


def test_the_theorem_in_expectation():
    """The probe would measure another quantity than the one whose expectation is positive in each active unit."""
    p = torch.linspace(-1, 2, 12, dtype=torch.float64)
    assert (active_means(p, 400, None, 1.0) > 0).all()
    means = active_means(p, 600, squared, 0.5)
    expected = 5 * 0.5**2 * p[p > 0]  # sum_k Var(v_ki) p_i
    assert (means - expected).abs().max() < 0.6 and abs((means / expected - 1).mean()) < 0.2


@pytest.mark.parametrize("context", [6, 1])
def test_language_model_counts_tokens_as_samples(context):
    """A model of tokens would be refused, or its derivatives be those of a sum over a window's tokens' mean."""
    lm = TransformerLM((context,), 9, 8, 1, activation="relu", generator=seeded()).double()
    tokens = torch.randint(9, (4, context), generator=seeded())
    found = GradientSign().measure(View(lm), [(tokens, tokens)])["active_gradient/block1.mlp.1"]
    kept = []
    lm.block1.mlp[1].register_forward_hook(lambda m, args, out: kept.append(out))
    loss = F.cross_entropy(lm(tokens).flatten(0, 1), tokens.flatten(), reduction="sum")
    (g,) = torch.autograd.grad(loss, kept)
    assert found == pytest.approx(g[kept[0] > 0].mean().item(), rel=1e-9)


def test_what_is_undefined_is_said():
    """Smooth activations, silent layers, broken weights or a rule of its own would give a silent number."""
    batch = data()
    watch = Watch(network(nn.GELU), [GradientSign()], batch)
    assert math.isnan(watch.measure(0)["active_gradient_positive"]) and watch.skipped
    silent = network()
    nn.init.constant_(silent[0].bias, -1e6)
    watch = Watch(silent, [GradientSign()], batch)
    assert math.isnan(watch.measure(0)["active_gradient/1"])
    assert watch.skipped["active_gradient/1"] == "no neuron is active"
    broken = network()
    with torch.no_grad():
        broken[2].weight[0, 0] = math.nan
    watch = Watch(broken, [GradientSign()], batch)
    assert math.isnan(watch.measure(0)["active_gradient/1"]) and "not finite" in watch.skipped["active_gradient/1"]
