"""ActivationSparsity against counting by hand, limits that are known, and models of other people."""

from __future__ import annotations

import math
from operator import itemgetter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from assay.errors import InvalidInput
from assay.models.transformer_lm import TransformerLM
from assay.nn.top_k import TopKMLP
from assay.probes.activation_sparsity import ActivationSparsity, active_entries
from assay.probes.view import View
from assay.watch import Watch


def seeded(seed=0):
    """A generator."""
    return torch.Generator().manual_seed(seed)


def mlp(activation, width=40):
    """One hidden layer, symmetric weights without bias."""
    net = nn.Sequential(nn.Linear(20, width, bias=False), activation, nn.Linear(width, 3))
    for p in net.parameters():
        nn.init.normal_(p, generator=seeded(1))
    return net


def data(n=50, *shape):
    """Inputs and labels."""
    return torch.randn(n, *(shape or (20,)), generator=seeded(2)), torch.arange(n) % 3


@pytest.mark.parametrize("batch_size", [50, 16])
def test_counts_what_the_definition_counts(batch_size):
    """Density, dead neurons, frequencies or the uneven last batch would be wrong."""
    net, (x, y) = mlp(nn.ReLU()), data()
    with torch.no_grad():
        net[0].weight[:4] = 0  # dead: relu(0) = 0
    probe = ActivationSparsity()
    values = Watch(net, [probe], (x, y), batch_size=batch_size).measure(0)
    a = (x @ net[0].weight.T).clamp(min=0)
    f = (a > 0).double().mean(0)
    assert values["activation_density/1"] == pytest.approx(f.mean().item(), abs=1e-12)
    assert values["activation_density"] == values["activation_density/1"]
    assert (
        values["dead_neurons/1"] == pytest.approx((f == 0).double().mean().item()) and values["dead_neurons/1"] >= 0.1
    )
    assert values["effective_width/1"] == pytest.approx((f.sum() ** 2 / (f**2).sum()).item())
    torch.testing.assert_close(probe.frequencies["1"].double(), f, rtol=1e-6, atol=1e-6)


def test_known_limits():
    """A symmetric start must be half dense, an identity dense, a very negative bias silent, top-k at most k."""
    batch = data(400)
    half = ActivationSparsity().measure(View(mlp(nn.ReLU(), 400)), [batch])
    assert half["activation_density"] == pytest.approx(0.5, abs=0.02)
    net = mlp(nn.Identity())
    assert ActivationSparsity(layers=["1"]).measure(View(net), [batch])["activation_density"] == 1.0
    silent = nn.Sequential(nn.Linear(20, 8), nn.ReLU())
    nn.init.constant_(silent[0].bias, -1e6)
    probe = ActivationSparsity()
    values = probe.measure(View(silent), [batch])
    assert (values["activation_density"], values["dead_neurons"]) == (0.0, 1.0)
    assert math.isnan(values["effective_width"]) and "no token" in probe.skipped["effective_width/1"]
    top = nn.Sequential(TopKMLP(20, 40, k=4, generator=seeded()))
    assert ActivationSparsity().measure(View(top), [batch])["activation_density/0.activation"] <= 4 / 40


def test_smooth_activations_are_counted_relative_to_the_tokens_largest():
    """GELU would seem dense, or be measured with a threshold that nobody is told."""
    net, (x, y) = mlp(nn.GELU()), data()
    probe = ActivationSparsity()
    found = probe.measure(View(net), [(x, y)])["activation_density/1"]
    a = F.gelu(x @ net[0].weight.T).abs()
    expected = torch.stack([(row > 0.01 * row.max()).double().mean() for row in a]).mean().item()
    assert found == pytest.approx(expected, abs=1e-12) and probe.thresholds == {"1": 0.01}
    exact = ActivationSparsity(threshold=0.0).measure(View(net), [(x, y)])
    assert exact["activation_density/1"] > found
    assert active_entries(torch.tensor([[0.0, 0.0]]), 0.5).sum() == 0


def test_language_model_with_a_mask_and_one_value_per_layer():
    """Padding would count, (B, T, V) scores be refused, or layers be missing."""
    lm = TransformerLM((6,), 9, 8, 2, activation="relu", generator=seeded())
    tokens = torch.randint(9, (4, 6), generator=seeded())
    mask = torch.rand(4, 6, generator=seeded()) < 0.6

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm = lm

        def forward(self, input_ids, attention_mask):
            return self.lm(input_ids)

    probe = ActivationSparsity(mask=itemgetter("attention_mask"))
    batch = ({"input_ids": tokens, "attention_mask": mask}, tokens)
    found = probe.measure(View(Masked()), [batch])
    caught = {}
    for name in ("block1", "block2"):
        module = getattr(lm, name).mlp[1]
        module.register_forward_hook(lambda m, args, out, name=name: caught.update({name: out}))
    lm(tokens)
    for name, a in caught.items():
        assert found[f"activation_density/lm.{name}.mlp.1"] == pytest.approx((a[mask] > 0).double().mean().item())
    with pytest.raises(InvalidInput, match=r"mask has shape \(4, 5\)"):
        ActivationSparsity(mask=lambda x: mask[:, :5]).measure(View(lm), [(tokens, tokens)])


class Functional(nn.Module):
    """Calls F.relu, and one module twice with different widths."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(20, 30), nn.Linear(30, 10), nn.Linear(10, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.last(self.relu(self.second(F.relu(self.first(x)))))


def test_functional_activations_by_what_reads_them():
    """A network that calls F.relu could not be measured."""
    net, (x, y) = Functional(), data()
    found = ActivationSparsity(inputs_of=["second"]).measure(View(net), [(x, y)])
    assert found["activation_density/second"] == pytest.approx((net.first(x) > 0).double().mean().item())


def test_a_module_that_runs_twice_is_two_layers():
    """Two layers of different width that share one nn.ReLU would be mixed or crash."""
    relu = nn.ReLU()
    net, (x, y) = nn.Sequential(nn.Linear(20, 30), relu, nn.Linear(30, 10), relu), data()
    found = ActivationSparsity().measure(View(net), [(x, y), (x, y)])
    first = net[0](x) > 0
    assert found["activation_density/1"] == pytest.approx(first.double().mean().item())
    assert found["activation_density/1#2"] == pytest.approx((net[:3](x) > 0).double().mean().item())


def test_channels_of_images_are_neurons():
    """Pixels would be taken for neurons."""
    net, (x, y) = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU6()), data(8, 2, 6, 6)
    probe = ActivationSparsity()
    probe.measure(View(net), [(x, y)])
    torch.testing.assert_close(probe.frequencies["1"], (net(x) > 0).float().mean((0, 2, 3)))
    last = ActivationSparsity(dim=-1)
    last.measure(View(net), [(x, y)])
    assert last.frequencies["1"].shape == (4,)


def test_saved_flops_are_those_of_products_with_zeros():
    """The saving would be more than what the second product costs, or count layers that do not read the activation."""
    net, (x, y) = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Dropout(), nn.Linear(40, 20)), data()
    values = ActivationSparsity(count_flops=True).measure(View(net.eval()), [(x[:30], y[:30]), (x[30:], y[30:])])
    s = values["activation_density"]
    assert values["flops_saved"] == pytest.approx((1 - s) / 2)  # the paper's: half of the MLP, less what is active
    with FlopCounterMode(display=False) as counter:
        net(x)
    zeros = int((net[:2](x) == 0).sum())
    assert values["flops_saved"] == pytest.approx(2 * 20 * zeros / counter.get_total_flops())


def test_compiled_and_other_peoples_models():
    """Hooks of a compiled model would not run, or activations of transformers not be found by type."""
    net, batch = mlp(nn.ReLU()), data()
    expected = ActivationSparsity().measure(View(net), [batch])
    assert ActivationSparsity().measure(View(torch.compile(net, backend="eager")), [batch]) == expected

    class NewGELUActivation(nn.Module):
        def forward(self, x):
            return F.gelu(x, approximate="tanh")

    assert "activation_density/1" in ActivationSparsity().measure(View(mlp(NewGELUActivation())), [batch])


def test_what_is_not_there_is_said():
    """A missing layer, no activation, NaN or a layer that never ran would end in a silent number."""
    batch = data()
    with pytest.raises(InvalidInput, match=r"no layer 'mlp\.act'"):
        ActivationSparsity(layers=["mlp.act"]).measure(View(mlp(nn.ReLU())), [batch])
    with pytest.raises(InvalidInput, match="list of names"):
        ActivationSparsity(layers="1").measure(View(mlp(nn.ReLU())), [batch])
    with pytest.raises(InvalidInput, match="threshold"):
        ActivationSparsity(threshold=1.0)
    for quiet in (nn.Tanh(), nn.LeakyReLU(), nn.PReLU()):
        watch = Watch(mlp(quiet), [ActivationSparsity()], batch)
        assert math.isnan(watch.measure(0)["activation_density"]) and "F.relu" in watch.skipped["activation_density"]
    broken = mlp(nn.ReLU())
    with torch.no_grad():
        broken[0].weight[0, 0] = math.nan
    watch = Watch(broken, [ActivationSparsity(count_flops=True)], batch)
    assert all(math.isnan(value) for value in watch.measure(0).values())
    assert "NaN" in watch.skipped["activation_density/1"]
    unused = Functional()
    unused.spare = nn.ReLU()
    watch = Watch(unused, [ActivationSparsity()], batch)
    values = watch.measure(0)
    assert math.isnan(values["activation_density/spare"]) and watch.skipped["activation_density/spare"]
    assert 0 < values["activation_density/relu"] < 1


def test_figure_shows_every_layer():
    """The picture of the last measurement would miss layers."""
    probe = ActivationSparsity()
    probe.measure(
        View(TransformerLM((6,), 9, 8, 3, activation="relu")), [(torch.zeros(2, 6).long(), torch.zeros(2, 6))]
    )
    assert len(probe.figure().axes[0].lines) == 3
