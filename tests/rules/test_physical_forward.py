"""Physical local learning against its equations, written out the slow way."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.data.dataset import Split
from assay.errors import InvalidInput
from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.models.physical_network import PhysicalNetwork
from assay.nn.physical_transform import PhysicalTransform
from assay.rules.physical_forward import PhysicalForward, cosine_goodness, label_contrast
from assay.watch import Watch


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(entries: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(9, entries, generator=_generator(1)).double(), torch.arange(9) % 3


def _refusing(h: Tensor) -> Tensor:
    """A system that notices when it is asked for a gradient."""
    assert not torch.is_grad_enabled() and not h.requires_grad
    return torch.sin(3 * h) + h.roll(1, 1) ** 2


def _hardware(depth: int = 2, entries: int = 6, width: int = 5) -> nn.Sequential:
    """Blocks of a refusing system and a linear layer."""
    sizes = [entries] + [width] * depth
    generator, network = _generator(), nn.Sequential()
    for k in range(depth):
        linear = nn.utils.skip_init(nn.Linear, sizes[k], width)
        for parameter in linear.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        network.append(nn.Sequential(PhysicalTransform(_refusing, sizes[k]), linear))
    return network.double()


def _rule(model: nn.Module | None = None, **options: object) -> PhysicalForward:
    given = {"num_classes": 3, "input_shape": (6,), "generator": _generator(2)} | options
    return PhysicalForward(model or _hardware(), **given)


def written(x: Tensor, labels: Tensor) -> Tensor:
    """The first 3 entries hold the label, sample by sample."""
    rows = []
    for row, label in zip(x, labels, strict=True):
        row = row.clone()
        strength = row.abs().max()
        row[:3] = 0.0
        row[int(label)] = strength
        rows.append(row)
    return torch.stack(rows)


def wrong_labels(rule: PhysicalForward, x: Tensor, y: Tensor) -> Tensor:
    """What the rule's next call will draw, from a copy of its generator."""
    twin = _generator()
    twin.set_state(rule.generator.get_state())
    return (y + torch.randint(1, 3, y.shape, generator=twin)) % 3


def local_loss(rule: PhysicalForward, k: int, h: Tensor, act: object = torch.abs) -> Tensor:
    """loss_k of stacked pairs, one sample after the other."""
    xi, total = rule.get_buffer(f"direction{k}"), 0.0
    for right, wrong in zip(*act(h).chunk(2), strict=True):
        g = [F.cosine_similarity(row, xi, dim=0) for row in (right, wrong)]
        total = total + torch.log(1 + torch.exp(-rule.theta * (g[0] - g[1])))
    return total / (len(h) / 2)


@pytest.mark.parametrize("theta", [4.0, 10.0])
def test_gradients_are_those_of_the_written_losses(theta: float) -> None:
    """Loss or gradient of a block would differ from autograd through the equations."""
    rule, (x, y) = _rule(theta=theta), _batch()
    h = torch.cat([written(x, y), written(x, wrong_labels(rule, x, y))])
    logs = rule.backward(x, y)
    for k, block in enumerate(rule.model):
        with torch.no_grad():
            r = _refusing(h)
        weight, bias = (p.detach().clone().requires_grad_() for p in block[1].parameters())
        h = F.linear(r, weight, bias)
        loss = local_loss(rule, k, h)
        loss.backward()
        h = h.detach()
        torch.testing.assert_close(block[1].weight.grad, weight.grad)
        torch.testing.assert_close(block[1].bias.grad, bias.grad)
        assert logs[f"loss/{rule.names[k]}"].item() == pytest.approx(loss.item(), rel=1e-10)


@pytest.mark.parametrize(("inner", "digital"), [(3, False), (5, True)])
def test_inner_steps_are_one_optimizer_per_block(inner: int, digital: bool) -> None:
    """Blocks would not be trained one after another, each on inputs from the new weights of the one before.

    The digital network is the paper's: no system, GELU, goodness of the activation itself.
    """
    model = _hardware()
    act = torch.abs
    if digital:
        layers = [nn.Sequential(block[1], nn.GELU()) for block in _hardware(width=6)]
        model, act = nn.Sequential(*layers), lambda h: h
    rule, (x, y) = _rule(model, inner=inner, magnitude=not digital), _batch()
    h = torch.cat([written(x, y), written(x, wrong_labels(rule, x, y))])
    expected = []
    for k, block in enumerate(rule.model):
        linear = block[0] if digital else block[1]
        with torch.no_grad():
            r = h if digital else _refusing(h)
        weight, bias = (p.detach().clone().requires_grad_() for p in linear.parameters())
        adam = torch.optim.Adam([weight, bias], lr=0.02)
        output = F.gelu if digital else (lambda h: h)
        for _ in range(inner):
            adam.zero_grad()
            local_loss(rule, k, output(F.linear(r, weight, bias)), act).backward()
            adam.step()
        h = output(F.linear(r, weight, bias)).detach()
        expected += [weight.detach(), bias.detach()]
    rule.step(x, y, torch.optim.Adam(rule.parameters(), lr=0.02))
    for found, want in zip(rule.trained_parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), want)


def test_one_inner_step_is_the_plain_loop() -> None:
    """`step` and the user's own loop would train differently."""
    rule, own, (x, y) = _rule(inner=1), _rule(inner=1), _batch()
    rule.step(x, y, torch.optim.Adam(rule.parameters(), lr=0.02))
    optimizer = torch.optim.Adam(own.parameters(), lr=0.02)
    own.backward(x, y)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(rule.parameters(), own.parameters(), strict=True))


@pytest.mark.parametrize("inner", [1, 7])
def test_hardware_is_called_once_per_block_and_batch(inner: int) -> None:
    """The slow part would run for every inner step, or for right and wrong labels apart."""
    rule, (x, y) = _rule(inner=inner), _batch()
    layers = [block[0] for block in rule.model]
    before = [(layer.calls, layer.rows) for layer in layers]
    rule.step(x, y, torch.optim.SGD(rule.parameters(), lr=0.1))
    assert [(a.calls - b[0], a.rows - b[1]) for a, b in zip(layers, before, strict=True)] == [(1, 18)] * 2
    rule.predict(x)
    assert [layer.rows - b[1] - 18 for layer, b in zip(layers, before, strict=True)] == [27] * 2


def test_clipping_bounds_each_blocks_inner_steps() -> None:
    """A bound on the gradient would be ignored where there are inner steps."""
    rule, (x, y) = _rule(inner=4), _batch()
    before = [[p.detach().clone() for p in group] for group in rule.groups()]
    rule.step(x, y, torch.optim.SGD(rule.parameters(), lr=1.0), clip=1e-3)
    for group, old in zip(rule.groups(), before, strict=True):
        moved = torch.cat([(p - q).flatten() for p, q in zip(group, old, strict=True)]).norm().item()
        assert 0 < moved <= 4.001e-3


def test_untrained_weights_of_zero_cost_log_2() -> None:
    """Without any activity right and wrong labels would not count as equally good."""
    rule = _rule()
    with torch.no_grad():
        for parameter in rule.trained_parameters():
            parameter.zero_()
    logs = rule.backward(*_batch())
    assert logs["loss"].item() == pytest.approx(2 * math.log(2), rel=1e-9)
    assert all(torch.isfinite(p.grad).all() for p in rule.trained_parameters())


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), rows=st.integers(1, 6), d=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_goodness_is_a_cosine(scale: float, rows: int, d: int, seed: int) -> None:
    """The length of a block's output would matter, or goodness leave [-1, 1]."""
    h = torch.randn(rows, d, generator=_generator(seed)).double() + 0.1
    xi = F.normalize(torch.randn(d, generator=_generator(seed + 1)).double(), dim=0)
    found = cosine_goodness(h, xi)
    torch.testing.assert_close(found, F.cosine_similarity(h, xi.expand_as(h), eps=1e-6))
    torch.testing.assert_close(cosine_goodness(scale * h, xi), found)
    assert (found.abs() <= 1 + 1e-12).all()


@settings(max_examples=20, deadline=None)
@given(a=st.floats(-1, 1), b=st.floats(-1, 1), theta=st.floats(0.1, 50))
def test_contrast_is_the_logistic_loss_of_the_difference(a: float, b: float, theta: float) -> None:
    """The loss would be another function of the two labels' goodness."""
    found = label_contrast(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64), theta)
    assert found.item() == pytest.approx(math.log1p(math.exp(-theta * (a - b))), rel=1e-9)


def test_prediction_is_a_sweep_over_labels() -> None:
    """Scores would not be each label's goodness, summed over the blocks."""
    rule, (x, _) = _rule(), _batch()
    for c in range(3):
        h, total = written(x, torch.full((9,), c)), torch.zeros(9).double()
        for k, block in enumerate(rule.model):
            with torch.no_grad():
                h = block[1](_refusing(h))
            total += F.cosine_similarity(h.abs(), rule.get_buffer(f"direction{k}").expand_as(h))
        torch.testing.assert_close(rule.predict(x)[:, c], total)


def test_prediction_depends_on_no_other_sample() -> None:
    """The same image would be classified differently in another batch."""
    rule, (x, _) = _rule(), _batch()
    torch.testing.assert_close(rule.predict(torch.cat([x, 100 * x]))[:9], rule.predict(x))


def test_classes_have_no_order() -> None:
    """Renaming the classes, with their entries of the input, would change more than the scores' order."""
    first = MLP((6,), 3, width=5, depth=2, generator=_generator()).double()
    second = MLP((6,), 3, width=5, depth=2, generator=_generator()).double()
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        second.block1[0].weight[:, :3] = first.block1[0].weight[:, order]
    x = _batch()[0]
    torch.testing.assert_close(_rule(second).predict(x), _rule(first).predict(x)[:, order])


@pytest.mark.parametrize("amplitude", [None, 2.5])
def test_label_goes_in_front_where_there_is_room(amplitude: float | None) -> None:
    """A label put before the input would cover it, or have another strength."""
    model = PhysicalNetwork((2, 3), 3, width=5, label_slots=True, generator=_generator()).double()
    rule = _rule(model, embed="prepend", input_shape=None, amplitude=amplitude)
    x, y = _batch()[0].view(9, 2, 3), _batch()[1]
    for row, embedded, label in zip(x, rule.embedded(x, y), y, strict=True):
        slots = [0.0] * 3
        slots[int(label)] = row.abs().max().item() if amplitude is None else amplitude
        assert embedded.tolist() == slots + row.flatten().tolist()
    assert rule.predict(x).shape == (9, 3) and rule.features(x)["block2"].shape == (9, 5)


def test_wrong_labels_are_uniform_over_the_others() -> None:
    """A negative would carry the true label, or some wrong label be shown more often."""
    rule, x = _rule(), torch.rand(3000, 6, generator=_generator(3)).double()
    y = torch.full((3000,), 1)
    pairs = rule._pairs(x, y)
    assert torch.equal(pairs[:3000], written(x, y))
    counts = torch.bincount(pairs[3000:, :3].argmax(1), minlength=3)
    assert counts[1] == 0 and abs(counts[0] - 1500) < 4 * math.sqrt(3000 / 4)


def test_trains_convolutions_and_is_seen_by_probes() -> None:
    """A block whose output is no vector would fail, or a probe not read the rule's features."""
    model = CNN((1, 8, 8), 3, channels=(4, 6), generator=_generator())
    rule = PhysicalForward(model, 3, inner=2, generator=_generator(2))
    x, y = torch.randn(9, 1, 8, 8, generator=_generator(1)), _batch()[1]
    before = model.block2[0].weight.detach().clone()
    rule.step(x, y, torch.optim.Adam(rule.parameters(), lr=1e-2))
    assert not torch.equal(before, model.block2[0].weight)
    watch = Watch(model, ["neural-collapse", "knn-accuracy"], Split(x, y), rule=rule)
    values = watch.measure(0)
    assert math.isfinite(values["nc1"]) and not watch.skipped.get("nc1"), sorted(values)


@pytest.mark.parametrize("inner", [1, 3])
def test_training_without_gradients_is_an_error(inner: int) -> None:
    """Steps under `torch.no_grad` would train nothing and say so nowhere."""
    rule, (x, y) = _rule(inner=inner), _batch()
    with torch.no_grad(), pytest.raises(RuntimeError, match="does not require grad"):
        rule.step(x, y, torch.optim.SGD(rule.parameters(), lr=0.1))


class _Residual(nn.Sequential):
    """Its forward is more than its children in turn."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def test_a_block_with_a_forward_of_its_own_is_kept_whole() -> None:
    """A residual block would be trained and used as the chain of its children."""
    model = nn.Sequential(_Residual(nn.Linear(6, 6), nn.GELU()), nn.Sequential(nn.Linear(6, 4), nn.GELU())).double()
    rule, x = _rule(model), _batch()[0]
    with torch.no_grad():
        expected = model[0](rule._write(x, torch.full((9, 3), 1 / 3).double()))
    torch.testing.assert_close(rule.features(x)["0"], expected)


TABLE = nn.Sequential(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(24, 4)))
LATE = nn.Sequential(nn.Sequential(nn.Linear(6, 5), PhysicalTransform(_refusing, 5)))
SIMULATED = [PhysicalTransform(nn.Linear(6, 6), 6), nn.Linear(6, 6), PhysicalTransform(nn.Linear(6, 6), 6)]
FLAT = nn.Sequential(*SIMULATED, nn.Linear(6, 5), nn.ReLU())


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (MLP((6,), 6), {"num_classes": 6}, "nothing would be left"),
        (MLP((6,), 3), {"num_classes": 1}, "at least 2"),
        (MLP((6,), 3), {"theta": 0.0}, "theta"),
        (MLP((6,), 3), {"inner": 0}, "inner"),
        (MLP((6,), 3), {"embed": "append"}, "embed"),
        (MLP((6,), 3), {"embed": "prepend"}, "do not take inputs"),
        (LATE, {}, "after trained weights"),
        (FLAT, {}, "after trained weights"),
        (FLAT, {"blocks": ["0", "1", "2", "3"]}, "no weights after its physical layer"),
        (TABLE, {}, "in a table"),
        (nn.Linear(6, 3), {}, "nn.Sequential"),
    ],
)
def test_refuses_what_it_cannot_train(model: nn.Module, options: dict, message: str) -> None:
    """A model on which the rule is not defined would be trained to nonsense."""
    with pytest.raises(InvalidInput, match=message):
        _rule(model, **options)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(4, 6, dtype=torch.long), torch.zeros(4, dtype=torch.long), "can't hold"),
        (torch.zeros(4, 6), torch.full((4,), 3), "class labels"),
        (torch.zeros(4, 6), torch.zeros(4, 1), "class labels"),
    ],
)
def test_refuses_labels_that_cannot_be_embedded(x: Tensor, y: Tensor, message: str) -> None:
    """A label would be written where it is lost, or beside the input."""
    with pytest.raises(InvalidInput, match=message):
        _rule(MLP((6,), 3)).backward(x, y)
