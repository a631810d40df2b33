import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.errors import InvalidInput
from assay.probes.energy import energy_gradient, ridge_head, ridge_signal
from assay.probes.feature_stages import QUANTITIES, FeatureStages
from assay.probes.view import View
from assay.watch import Watch


def random(*shape, seed=0):
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(*sizes, bias=True):
    """A ReLU network in float64 with seeded weights."""
    layers = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layer = nn.Linear(a, b, bias=bias).double()
        layer.weight.data = random(b, a, seed=i) / a**0.5
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data(n=30, classes=3):
    """Inputs and unbalanced labels."""
    y = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(7))
    return random(n, 4, seed=9) + y[:, None], y


def cut(x, y, size):
    """Cut into batches."""
    return list(zip(x.split(size), y.split(size), strict=True))


def by_hand(features, signal, y, eta):
    """The five quantities from whole matrices, nodes one by one."""
    n = len(y)
    P = torch.eye(n, dtype=torch.float64) - 1 / n
    Yc, Fc = P @ F.one_hot(y).double(), P @ features
    live = [j for j in range(features.shape[1]) if Fc[:, j].norm() > 1e-9]
    C = Fc[:, live].T @ Fc[:, live]
    ridge = eta * C.diagonal().mean()
    redundancy = []
    for j in range(len(live)):
        rest = [i for i in range(len(live)) if i != j]
        c = C[rest][:, j]
        explained = c @ torch.linalg.solve(C[rest][:, rest] + ridge * torch.eye(len(rest)).double(), c)
        redundancy.append((explained / (C[j, j] + ridge)).item())
    top = torch.linalg.matrix_norm(Yc, 2).square()
    mine = Yc @ Yc.T @ Fc
    off = [C[i, j].abs().item() for i in range(len(live)) for j in range(len(live)) if i != j]
    return {
        "signal_norm": math.sqrt(signal.square().sum().item() / n),
        "signal_alignment": sum(
            F.cosine_similarity(signal[:, j], mine[:, j], dim=0).item() for j in live if signal[:, j].norm() > 0
        )
        / sum(1 for j in live if signal[:, j].norm() > 0),
        "feature_energy": sum(((Yc.T @ Fc[:, j]).square().sum() / top / Fc[:, j].square().sum()).item() for j in live)
        / len(live),
        "feature_overlap": sum(off) / len(off) / C.diagonal().mean().item(),
        "feature_redundancy": sum(redundancy) / len(redundancy),
    }


@pytest.mark.parametrize("size", [30, 7])
def test_every_layer_equals_whole_matrices(size):
    """A sum, its centring, the chain through deeper layers or the weighting of uneven batches is wrong."""
    model, (x, y) = network(4, 10, 8, 3), data()
    probe = FeatureStages(eta=0.05)
    values = probe.measure(View(model), cut(x, y, size))
    first = model[:2](x).detach().requires_grad_()
    second = model[2:4](first)
    gradients = torch.autograd.grad(F.cross_entropy(model[4:](second), y), (first, second))
    for name, features, gradient in zip(("2", "4"), (first, second), gradients, strict=True):
        for key, expected in by_hand(features.detach(), -30 * gradient, y, 0.05).items():
            assert values[f"{key}/{name}"] == pytest.approx(expected, rel=1e-9), key
    assert len(values) == 10 and not probe.skipped
    assert probe.nodes["2"]["energy"].shape == (10,)


def test_a_ridge_optimal_head_gives_the_ridge_signal():
    """With the theory's loss and top layer the measured signal is not eta A Yc Yc^T A Fc."""
    x, y = random(12, 5), torch.arange(12) % 3
    hidden = nn.Linear(5, 40, bias=False).double()
    hidden.weight.data = random(40, 5, seed=1)
    features = torch.relu(hidden(x)).detach()
    V = ridge_head(features, y, 0.1)
    head = nn.Linear(40, 3).double()
    head.weight.data, head.bias.data = V.T.contiguous(), 1 / 3 - features.mean(dim=0) @ V
    model = nn.Sequential(hidden, nn.ReLU(), head)

    def loss(scores, targets):
        return (scores - F.one_hot(targets, 3)).square().sum(dim=1).mean() / 2

    values = FeatureStages().measure(View(model, loss=loss), cut(x, y, 5))
    signal, mine = ridge_signal(features, y, 0.1), energy_gradient(features, y)
    expected = F.cosine_similarity(signal, mine, dim=0)
    assert values["signal_alignment/2"] == pytest.approx(expected[mine.norm(dim=0) > 0].mean().item(), rel=1e-9)
    assert values["signal_norm/2"] == pytest.approx(signal.norm().item() / 12**0.5, rel=1e-9)


class Table(nn.Module):
    """The square of a fixed hidden layer on one-hot pairs."""

    def __init__(self, weight):
        super().__init__()
        self.hidden = nn.Linear(weight.shape[1], len(weight), bias=False).double()
        self.hidden.weight.data = weight
        self.head = nn.Linear(len(weight), weight.shape[1] // 2).double()

    def forward(self, x):
        return self.head(self.hidden(x).square())


def test_energy_of_a_single_frequency_is_two_fifths_of_the_greatest():
    """(u_i + v_j)^2 for waves u, v has 1 part of 2.5 of its variance in i + j: the share is not 0.4."""
    modulus = 11
    pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    x, y = F.one_hot(pairs, modulus).flatten(1).double(), pairs.sum(dim=1) % modulus
    angle = 2 * math.pi * torch.arange(modulus, dtype=torch.float64) / modulus
    weight = torch.stack([torch.cat([torch.cos(k * angle), torch.cos(k * angle + 1)]) for k in (1, 2, 4)])
    values = FeatureStages().measure(View(Table(weight)), [(x, y)])
    assert values["feature_energy/head"] == pytest.approx(0.4, rel=1e-12)


def test_energy_of_random_features_is_at_chance():
    """Features that know nothing of the classes do not score (C - 1) / (n - 1)."""
    y = torch.arange(40) % 5
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(800, 5).double())
    values = FeatureStages(layers=["2"], max_width=800).measure(View(model), [(random(40, 800), y)])
    assert values["feature_energy/2"] == pytest.approx(4 / 39, rel=0.1)


def test_constant_and_dead_nodes_are_left_out():
    """A dead node makes the means NaN, or counts as 0."""
    model, (x, y) = network(4, 6, 3), data()
    model[0].weight.data[0], model[0].bias.data[0] = 0.0, -1.0
    values = FeatureStages().measure(View(model), [(x, y)])
    model[0].weight.data, model[0].bias.data = model[0].weight.data[1:], model[0].bias.data[1:]
    model[2].weight.data = model[2].weight.data[:, 1:]
    expected = FeatureStages().measure(View(model), [(x, y)])
    del values["signal_norm/2"], expected["signal_norm/2"]  # no mean over nodes: a signal reaches dead ones, too
    assert values == pytest.approx(expected, rel=1e-9)


def measured(model, x, y, **options):
    """Values and reasons by `Watch`."""
    watch = Watch(model, [FeatureStages(**options)], (x, y), batch_size=8)
    return watch.measure(0), watch.skipped


@pytest.mark.parametrize(
    ("labels", "reason"), [(torch.zeros(30, dtype=torch.long), "single class"), (torch.arange(30), "two samples")]
)
def test_labels_that_tell_nothing_are_skipped(labels, reason):
    """One class, or one sample per class, gives an energy."""
    values, skipped = measured(network(4, 6, 30), data()[0], labels)
    for key in ("signal_alignment/2", "feature_energy/2"):
        assert math.isnan(values[key]) and reason in skipped[key]
    assert math.isfinite(values["feature_overlap/2"])


def test_a_feature_that_two_layers_read_gets_the_signal_of_both():
    """Only one reader's part of the gradient is reported, or a part that depends on how deep the layer is."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(4, 6).double()
            self.one, self.two = nn.Linear(6, 3).double(), nn.Linear(6, 3).double()

        def forward(self, x):
            h = torch.relu(self.hidden(x))
            return self.one(h) + self.two(h)

    model, (x, y) = Branches(), data()
    values = FeatureStages().measure(View(model), [(x, y)])
    h = torch.relu(model.hidden(x)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model.one(h) + model.two(h), y), h)
    expected = (30 * gradient).norm().item() / 30**0.5
    assert values["signal_norm/one"] == pytest.approx(expected) and values["signal_norm/two"] == pytest.approx(expected)


class TwoHeads(nn.Module):
    """Only the first head's scores are returned; the second reads features of its own."""

    def __init__(self):
        super().__init__()
        self.hidden, self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x):
        h = torch.relu(self.hidden(x))
        self.two(h.square())
        return self.one(h)


def test_what_cannot_be_measured_is_said():
    """An unused head, a layer that runs twice or on tokens, a wide layer or NaN weights give numbers without a word."""
    x, y = data()
    x = x.float()
    values, skipped = measured(TwoHeads(), x, y)
    assert "does not depend" in skipped["feature_energy/two"] and math.isfinite(values["feature_energy/one"])
    twice = network(4, 4, 4, 3).float()
    twice[2] = twice[0]
    twice.insert(0, nn.Linear(4, 4))
    _, skipped = measured(twice, x, y)
    assert "2 times" in skipped["feature_energy/1"]
    tokens = nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.Flatten(), nn.Linear(8, 3)
    )
    _, skipped = measured(tokens, x, y)
    assert "not one vector" in skipped["feature_energy/3"] and "feature_energy/5" not in skipped
    _, skipped = measured(network(4, 6, 3).float(), x, y, max_width=5)
    assert "max_width=5" in skipped["feature_overlap/2"]
    broken = network(4, 6, 3).float()
    broken[0].weight.data[0, 0] = math.nan
    values, skipped = measured(broken, x, y)
    assert all(math.isnan(values[f"{key}/2"]) and "finite" in skipped[f"{key}/2"] for key in QUANTITIES)
    values, skipped = measured(nn.Linear(4, 3), x, y)
    assert "hidden features" in skipped["signal_alignment"]


def test_frozen_layers_are_measured_like_others():
    """A frozen hidden layer, whose weights get no gradient, changes what reaches its features."""
    model, (x, y) = network(4, 6, 5, 3), data()
    free, _ = measured(model, x, y)
    model.requires_grad_(False)
    assert measured(model, x, y)[0] == free


def test_wrong_requests_are_refused():
    """A layer that does not exist, labels that are none or a senseless ridge are measured."""
    x, y = data()
    for call in (
        lambda: measured(network(4, 6, 3), x, y, layers=["7"]),
        lambda: measured(network(4, 6, 3), x, y.double()),
        lambda: FeatureStages(eta=0.0),
        lambda: FeatureStages(max_width=0),
    ):
        with pytest.raises(InvalidInput) as error:
            call()
        assert "\n" not in str(error.value)
