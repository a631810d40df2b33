"""Target projection against autograd of its local losses, closed forms, least squares and its own orders."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.lab.cost import counted
from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.models.row_rnn import RowRNN
from assay.rules.target_projection import TargetProjection


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(12, *(shape or (6,)), generator=_generator(1)).double(), torch.arange(12) % 3


def _mlp(depth: int = 3, activation: str = "tanh") -> MLP:
    return MLP((6,), 3, width=5, depth=depth, activation=activation, generator=_generator()).double()


def _rule(model: nn.Module | None = None, **options: object) -> TargetProjection:
    return TargetProjection(model if model is not None else _mlp(), 3, generator=_generator(2), **options)


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def _local_loss(kind: str, y: Tensor, t: Tensor) -> Tensor:
    difference = y - t
    return (difference.square() / 2 if kind == "mse" else difference.abs()).sum() / len(y)


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("kind", ["mse", "l1"])
def test_gradients_are_those_of_the_local_losses(kind: str, activation: str) -> None:
    """A layer would follow something else than autograd's gradient of its loss on its detached input."""
    rule, (x, y) = _rule(_mlp(activation=activation), local_loss=kind), _batch()
    logs = rule.backward(x, y)
    found, h, total = _gradients(rule), x, 0.0
    rule.zero_grad(set_to_none=True)
    for i, block in enumerate((rule.model.block1, rule.model.block2, rule.model.block3)):
        out = block(h.detach())
        loss = _local_loss(kind, out, rule.get_buffer(f"target{i}")[y])
        loss.backward()
        h, total = out, total + loss.item()
    last = F.cross_entropy(rule.model.head(h.detach()), y)
    last.backward()
    for name, expected in _gradients(rule).items():
        torch.testing.assert_close(found[name], expected)
    assert logs["loss"].item() == pytest.approx(total + last.item())


def test_deltas_are_the_digest_s() -> None:
    """The update would not be delta = (t - y) sigma' for l2, its sign for l1, and delta^T h / B for the weights."""
    x, y = _batch()
    for kind in ("mse", "l1"):
        rule = _rule(local_loss=kind)
        rule.backward(x, y)
        h = x
        for i, block in enumerate((rule.model.block1, rule.model.block2, rule.model.block3)):
            out = (h @ block[0].weight.T + block[0].bias).tanh().detach()
            error = rule.get_buffer(f"target{i}")[y] - out
            delta = (error if kind == "mse" else error.sign()) * (1 - out**2)
            torch.testing.assert_close(block[0].weight.grad, -delta.T @ h / len(x))
            torch.testing.assert_close(block[0].bias.grad, -delta.mean(0))
            h = out


def test_the_output_layer_learns_as_in_backprop() -> None:
    """The last layer's step would differ from backpropagation's on the same network."""
    rule, (x, y) = _rule(loss=nn.CrossEntropyLoss(label_smoothing=0.2)), _batch()
    rule.backward(x, y)
    found = _gradients(rule.model.head)
    plain = copy.deepcopy(rule.model)
    plain.zero_grad(set_to_none=True)
    F.cross_entropy(plain(x), y, label_smoothing=0.2).backward()
    for name, expected in _gradients(plain.head).items():
        torch.testing.assert_close(found[name], expected)


def test_convolutions_have_a_target_per_position_before_pooling() -> None:
    """The target would follow pooling, or be one number per channel."""
    children = nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    rule = _rule(nn.Sequential(*children).double(), input_shape=(1, 8, 8))
    assert rule.target0.shape == (3, 4, 8, 8)
    x, y = _batch(1, 8, 8)
    rule.backward(x, y)
    out = children[0](x).tanh().detach()
    delta = (out - rule.target0[y]) * (1 - out**2) / len(x)
    weight = torch.nn.grad.conv2d_weight(x, children[0].weight.shape, delta, padding=1)
    torch.testing.assert_close(children[0].weight.grad, weight)
    torch.testing.assert_close(children[0].bias.grad, delta.sum((0, 2, 3)))


def test_normalised_convolutions_learn_as_a_whole() -> None:
    """A normalisation behind the pool would be left without a gradient."""
    rule = _rule(CNN((1, 8, 8), 3, channels=(4, 6), generator=_generator()).double())
    assert rule.target0.shape == (3, 4, 4, 4) and rule.target1.shape == (3, 6, 2, 2)
    rule.backward(*_batch(1, 8, 8))
    assert _gradients(rule.model.block1).keys() == {"0.weight", "3.weight", "3.bias"}


@pytest.mark.parametrize(("cell", "steps"), [("rnn", "all"), ("gru", "all"), ("rnn", "last")])
def test_recurrent_layers_learn_without_backpropagation_through_time(cell: str, steps: str) -> None:
    """A step's gradient would reach earlier steps, or a step be left out: torch's cell is stepped one by one."""
    rule = _rule(RowRNN((5, 4), 3, width=6, depth=2, cell=cell, generator=_generator()).double(), steps=steps)
    x, y = _batch(5, 4)
    rule.backward(x, y)
    stepper, h_all = {"rnn": nn.RNNCell, "gru": nn.GRUCell}[cell], x
    for i, block in enumerate((rule.model.block1, rule.model.block2)):
        step = stepper(h_all.shape[2], 6).double()
        step.load_state_dict({name.removesuffix("_l0"): value for name, value in block.cell.state_dict().items()})
        h, states, loss = torch.zeros(12, 6, dtype=torch.float64), [], 0.0
        for t in range(5):
            h = step(h_all[:, t].detach(), h.detach())
            states.append(h)
            if steps == "all" or t == 4:
                loss = loss + _local_loss("mse", h, rule.get_buffer(f"target{i}")[y])
        loss.backward()
        for name, parameter in step.named_parameters():
            torch.testing.assert_close(block.cell.get_parameter(f"{name}_l0").grad, parameter.grad)
        h_all = torch.stack(states, 1)


def test_any_local_loss_of_outputs_and_targets() -> None:
    """A function would not be differentiated by the outputs, or its value not be reported."""
    x, y = _batch()
    own, named = _rule(local_loss=lambda out, t: (out - t).square().sum() / (2 * len(t))), _rule()
    logs, expected = own.backward(x, y), named.backward(x, y)
    assert logs["loss/block2"].item() == pytest.approx(expected["loss/block2"].item())
    for name, gradient in _gradients(named).items():
        torch.testing.assert_close(_gradients(own)[name], gradient)


def test_greedy_phases_are_the_sweep_s_updates_layer_by_layer() -> None:
    """A phase would train another layer, or run later layers."""
    x, y = _batch()
    sweep, greedy = _rule(), _rule(order="greedy")
    assert greedy.phase_names == ("block1", "block2", "block3", "head")
    greedy.load_state_dict({**sweep.state_dict(), "_extra_state": greedy.get_extra_state()})
    sweep.backward(x, y)
    everything, found = _gradients(sweep), {}
    for name in greedy.phase_names:
        greedy.begin(name)
        greedy.backward(x, y)
        assert all(key.startswith(f"model.{name}") for key in _gradients(greedy))
        found |= _gradients(greedy)
    assert found.keys() == everything.keys()
    assert all(torch.equal(found[key], everything[key]) for key in found)


@pytest.mark.parametrize(("projection", "largest"), [("tanh", 1.0), ("raw", 4.5), ("uniform", 1.0), ("sign", 1.0)])
def test_targets_stay_fixed_and_within_the_activation_s_range(projection: str, largest: float) -> None:
    """Targets would be trained, differ under one seed, or lie where ReLU can never be."""
    for activation, lowest in (("tanh", -largest), ("relu", 0.0)):
        rule, twin = (_rule(_mlp(activation=activation), projection=projection) for _ in range(2))
        before = {name: b.clone() for name, b in rule.named_buffers()}
        rule.step(*_batch(), torch.optim.SGD(rule.parameters(), lr=0.1))
        for name, buffer in rule.named_buffers():
            assert torch.equal(buffer, before[name]) and torch.equal(buffer, twin.get_buffer(name))
            assert lowest <= buffer.min() and buffer.max() <= largest and buffer.std() > 0.1


def test_a_linear_layer_ends_at_the_least_squares_regression_onto_its_targets() -> None:
    """With a linear first layer and the full batch, l2 target projection is a regression with a known solution."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).double()
    rule, (x, y) = _rule(model, projection="raw"), _batch()
    optimizer = torch.optim.LBFGS(model[0].parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> float:
        optimizer.zero_grad()
        return rule.backward(x, y)["loss/0"].item()

    optimizer.step(closure)
    design = np.hstack([x.numpy(), np.ones((12, 1))])
    solution = np.linalg.lstsq(design, rule.target0[y].numpy(), rcond=None)[0]
    np.testing.assert_allclose(model[0].weight.detach().numpy(), solution[:-1].T, atol=1e-6)
    np.testing.assert_allclose(model[0].bias.detach().numpy(), solution[-1], atol=1e-6)


def test_memory_does_not_grow_with_depth() -> None:
    """What is kept for an update would add up over the layers, or not be counted: input and output of one layer."""
    saved = []
    for depth in (2, 12):
        rule, cost = TargetProjection(MLP((64,), 10, width=64, depth=depth, activation="tanh"), 10), {}
        with counted(cost, rule):
            rule.backward(torch.ones(32, 64), torch.arange(32) % 10)
        saved.append(cost["saved_bytes"])
    assert saved[0] == saved[1] == 2 * 32 * 64 * 4


def test_named_blocks_and_frozen_parameters() -> None:
    """Blocks of any module would not be found by name, or a frozen parameter get a gradient."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.a(x))

    rule, (x, y) = _rule(Net().double(), blocks=["a", "out"]), _batch()
    rule.model.a[0].bias.requires_grad_(False)
    rule.backward(x, y)
    assert _gradients(rule).keys() == {"model.a.0.weight", "model.out.weight", "model.out.bias"}
    torch.testing.assert_close(rule.predict(x), rule.head()(rule.features(x)["a"]))


@pytest.mark.parametrize(
    "options",
    [
        {"local_loss": "huber"},
        {"local_loss": lambda y, t: y - t},
        {"projection": "cauchy"},
        {"scale": 0.0},
        {"order": "random"},
        {"steps": "first"},
        {"num_classes": 1},
        {"num_classes": 4},
        {"model": MLP((6,), 3, depth=0)},
        {"model": nn.Sequential(nn.Linear(6, 5), nn.Tanh())},
        {"model": nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))},
        {"input_shape": (7,)},
        {"loss": nn.CosineEmbeddingLoss()},
    ],
)
def test_refuses_what_it_cannot_train_before_training(options: dict) -> None:
    """A wrong option, network or loss would be noticed only in training, or never."""
    with pytest.raises(InvalidInput):
        TargetProjection(**({"model": MLP((6,), 3), "num_classes": 3} | options))
