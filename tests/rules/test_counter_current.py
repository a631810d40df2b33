"""Counter-current learning against its equations: which term reaches what, its limits, clipping, autoencoders."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.rules.backprop import Backprop
from assay.rules.counter_current import CounterCurrent


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(12, *(shape or (6,)), generator=_generator(1)).double(), torch.arange(12) % 3


def _mlp(depth: int = 3) -> MLP:
    return MLP((6,), 3, width=5, depth=depth, bias=False, activation="elu", generator=_generator()).double()


def _rule(model: nn.Module | None = None, classes: int | None = 3, **options: object) -> CounterCurrent:
    return CounterCurrent(model if model is not None else _mlp(), classes, generator=_generator(2), **options)


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def _prototype_terms(rule: CounterCurrent, x: Tensor, y: Tensor, cut: bool = True) -> list[Tensor]:
    """Write the loss out from the weights: CE last, the matches of depth 0, 1, 2, 3 before."""
    sg = Tensor.detach if cut else (lambda t: t)
    a, activations = x, [x]
    for block in (rule.model.block1, rule.model.block2, rule.model.block3):
        a = F.elu(sg(a) @ block[0].weight.T)
        activations.append(a)
    logits = sg(a) @ rule.model.head.weight.T
    s, signals = torch.eye(3, dtype=x.dtype), []
    weights = [p for p in rule.feedback.parameters()]
    for k, w in enumerate(weights):
        s = sg(s) @ w.T
        s = s if k == len(weights) - 1 else F.elu(s)
        signals.insert(0, s)
    same = (y[:, None] == torch.arange(3)).double()
    match = [0.5 * 256 * ((a @ s.T - same) ** 2).mean() / a.shape[1] for a, s in zip(activations, signals, strict=True)]
    return [*match, F.cross_entropy(logits, y)]


def test_gradients_and_losses_are_the_equations() -> None:
    """A match would compare other depths, weigh otherwise, or send gradients through a layer."""
    rule, (x, y) = _rule(), _batch()
    logs = rule.backward(x, y)
    found = _gradients(rule)
    rule.zero_grad(set_to_none=True)
    terms = _prototype_terms(rule, x, y)
    sum(terms).backward()
    expected = _gradients(rule)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])
    names = ("input", "block1", "block2", "block3", "head")
    assert [logs[f"loss/{name}"].item() for name in names] == pytest.approx([t.item() for t in terms])
    assert logs["loss"].item() == pytest.approx(sum(terms).item())


@pytest.mark.parametrize("k", range(4))
def test_a_term_reaches_one_layer_of_each_network(k: int) -> None:
    """With only the match of depth k in the loss, more than F_k and G_{k+1} would learn."""
    rule, (x, _) = _rule(), _batch()
    signals = rule._signals(torch.eye(3, dtype=torch.float64))
    activation = list(rule._activations(x))[k]
    (activation @ signals[k].T).square().sum().backward()
    forward = {f"model.block{k}.0.weight"} if k else set()
    assert _gradients(rule).keys() == forward | {f"feedback.{3 - k}.1.weight"}


def test_one_layer_learns_as_in_backprop() -> None:
    """Without hidden layers the forward network's step would differ from backpropagation's."""
    x, y = _batch()
    model = nn.Sequential(nn.Linear(6, 3)).double()
    rule = CounterCurrent(model, 3, blocks=["0"], generator=_generator(2))
    rule.backward(x, y)
    found = _gradients(model)
    rule.zero_grad(set_to_none=True)
    Backprop(model).backward(x, y)
    assert all(torch.allclose(found[name], g, atol=1e-14) for name, g in _gradients(model).items())
    assert torch.equal(rule.features(x)["input"], x)


def test_frozen_feedback_stays_as_it_was_drawn() -> None:
    """Feedback that must not learn would, or its absence change what the forward layers learn."""
    x, y = _batch()
    frozen, trained = _rule(train_feedback=False), _rule()
    before = copy.deepcopy(frozen.feedback.state_dict())
    for rule in (frozen, trained):
        rule.backward(x, y)
    assert all(torch.equal(g, _gradients(trained.model)[name]) for name, g in _gradients(frozen.model).items())
    assert len(frozen.groups()) == 1 and not _gradients(frozen.feedback)
    optimizer = torch.optim.SGD(frozen.parameters(), lr=0.5)
    for _ in range(3):
        frozen.step(x, y, optimizer)
    assert all(torch.equal(v, before[name]) for name, v in frozen.feedback.state_dict().items())


def test_each_network_is_clipped_by_itself() -> None:
    """One norm would be taken over both networks, or none at all."""
    rule, (x, y) = _rule(clip=0.01), _batch()
    rule.step(x, y, torch.optim.SGD(rule.parameters(), lr=0.0))
    for network in (rule.model, rule.feedback):
        norm = torch.cat([g.flatten() for g in _gradients(network).values()]).norm().item()
        assert norm == pytest.approx(0.01, rel=1e-4)
    free, unclipped = _rule(clip=None), _rule()
    free.step(x, y, torch.optim.SGD(free.parameters(), lr=0.0))
    unclipped.backward(x, y)
    assert all(torch.equal(g, _gradients(unclipped)[name]) for name, g in _gradients(free).items())


def test_classes_may_be_renamed() -> None:
    """The loss would depend on the classes' order, though signals start from the one-hot vectors."""
    x, y = _batch()
    order = torch.tensor([2, 0, 1])
    rule, renamed = _rule(), _rule()
    with torch.no_grad():
        renamed.model.head.weight.copy_(rule.model.head.weight[order.argsort()])
        first = renamed.feedback[0][1].weight
        first.copy_(first[:, order.argsort()].clone())
    a, b = rule.backward(x, y), renamed.backward(x, order[y])
    assert all(a[name].item() == pytest.approx(b[name].item(), rel=1e-12) for name in a)


def test_sure_samples_count_as_zero_activations() -> None:
    """Samples whose class is known would still be matched, or be dropped from the mean."""
    x, y = _batch(1, 8, 8)
    rule = _rule(CNN((1, 8, 8), 3, channels=(4, 5), generator=_generator()).double(), match="normalized")
    with torch.no_grad():
        rule.model.head.bias.copy_(torch.tensor([8.0, 0.0, 0.0]))  # sure of class 0
    expected = rule.backward(x, y)["loss/head"]
    rule.skip_above = 0.9
    logs = rule.backward(x, y)
    assert torch.equal(logs["loss/head"], expected)
    s = F.normalize(rule.signals()["input"].flatten(1), dim=1)
    a = F.normalize(x.flatten(1), dim=1) * (y != 0)[:, None]
    same = (y[:, None] == torch.arange(3)).double()
    within = ((a @ a.T - torch.eye(12)) ** 2).mean() + ((s @ s.T - torch.eye(3)) ** 2).mean()
    assert logs["loss/input"].item() == pytest.approx((((a @ s.T - same) ** 2).mean() + within / 2).item(), rel=1e-6)


def test_an_autoencoder_matches_its_own_batch() -> None:
    """With "mse" the feedback network would not run from the batch's targets to the batch's input."""
    children = nn.Flatten(), nn.Linear(16, 5), nn.ELU(), nn.Linear(5, 16)
    model = nn.Sequential(*children).double()
    rule = _rule(model, None, match="mse", loss=F.mse_loss, input_shape=(1, 4, 4), weight=0.3)
    x, _ = _batch(1, 4, 4)
    logs = rule.backward(x, x)
    s1 = F.elu(x.flatten(1) @ rule.feedback[0][1].weight.T)
    s0 = s1 @ rule.feedback[1][1].weight.T
    a1 = F.elu(children[1](x.flatten(1)))
    assert logs["loss/head"].item() == pytest.approx(F.mse_loss(children[3](a1), x.flatten(1)).item())
    assert logs["loss/1"].item() == pytest.approx(0.3 * F.mse_loss(a1, s1).item())
    assert logs["loss/input"].item() == pytest.approx(0.3 * F.mse_loss(x.flatten(1), s0).item() * 4)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.5)
    losses = [rule.step(x, x, optimizer)["loss/head"].item() for _ in range(300)]
    assert losses[-1] < 0.7 * losses[0]


def test_labels_as_targets_of_mse() -> None:
    """With "mse" and classes the feedback would start from something else than the batch's one-hot labels."""
    rule, (x, y) = _rule(match="mse"), _batch()
    logs = rule.backward(x, y)
    signals = rule.signals()
    for name, a in rule.features(x).items():
        assert logs[f"loss/{name}"].item() == pytest.approx(F.mse_loss(a, signals[name][y]).item())


def test_own_feedback_network() -> None:
    """Layers of one's own would not be taken, or not be checked."""
    own = nn.ModuleList([nn.Linear(3, 5), nn.Sequential(nn.Linear(5, 6), nn.Tanh())]).double()
    rule = _rule(_mlp(depth=1), feedback=own)
    rule.backward(*_batch())
    assert len(_gradients(own)) == 4
    with pytest.raises(InvalidInput, match="shapes"):
        _rule(_mlp(depth=1), feedback=nn.ModuleList([nn.Linear(3, 6), nn.Linear(6, 6)]).double())
    with pytest.raises(InvalidInput, match="does not run"):
        _rule(_mlp(depth=1), feedback=nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 6)]).double())


def test_what_is_frozen_in_own_feedback_stays_so() -> None:
    """A parameter that the user froze would learn again."""
    own = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 6)]).double()
    own[0].requires_grad_(False)
    rule = _rule(_mlp(depth=1), feedback=own)
    rule.backward(*_batch())
    assert _gradients(own).keys() == {"1.weight", "1.bias"}


@pytest.mark.parametrize(
    "options",
    [
        {"match": "cosine"},
        {"feedback": "transpose"},
        {"weight": -1.0},
        {"clip": 0.0},
        {"num_classes": 1},
        {"num_classes": 4},
        {"num_classes": None},
        {"activation": "swish"},
        {"model": nn.Sequential(nn.Linear(6, 5), nn.ELU())},
        {"input_shape": (7,)},
        {"loss": lambda scores, targets: scores},
        {"loss": nn.MSELoss()},
        {"loss": nn.BCEWithLogitsLoss()},
        {"loss": nn.MSELoss(), "model": MLP((6,), 256), "num_classes": 256},
    ],
)
def test_refuses_what_it_cannot_train_before_training(options: dict) -> None:
    """A wrong option, network or loss would be noticed only in training, or never."""
    with pytest.raises(InvalidInput):
        CounterCurrent(**({"model": MLP((6,), 3), "num_classes": 3} | options))


def test_backward_without_gradients_is_an_error() -> None:
    """Under `torch.no_grad` losses would come back as if all were well, and nothing would be learned."""
    with torch.no_grad(), pytest.raises(RuntimeError, match="does not require grad"):
        _rule().backward(*_batch())


def test_refuses_targets_that_are_no_labels() -> None:
    """Vectors would be taken for labels."""
    x, _ = _batch()
    with pytest.raises(InvalidInput, match="int64"):
        _rule().backward(x, torch.rand(12, 3))
