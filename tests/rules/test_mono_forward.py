"""Mono-Forward against backpropagation of each block on its own, and its schedules against each other."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.rules.mono_forward import MonoForward


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch() -> tuple[Tensor, Tensor]:
    return torch.randn(20, 6, generator=_generator(1)).double(), torch.arange(20) % 3


def _rule(depth: int = 3, **options: object) -> MonoForward:
    model = MLP((6,), 3, width=5, depth=depth, generator=_generator()).double()
    return MonoForward(model, 3, generator=_generator(2), **options)


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_one_block_is_backprop_with_a_bias_free_head() -> None:
    """With one hidden layer Mono-Forward is backpropagation of [Linear, ReLU, bias-free Linear]."""
    mono, (x, y) = _rule(depth=1), _batch()
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)).double()
    plain[0].load_state_dict(mono.model.block1[0].state_dict())
    plain[2].load_state_dict(mono.projections[0].state_dict())
    F.cross_entropy(plain(x), y).backward()
    logs = mono.backward(x, y)
    found = [p.grad for p in mono.trained_parameters()]
    assert all(torch.allclose(a, p.grad, atol=1e-12) for a, p in zip(found, plain.parameters(), strict=True))
    assert logs["loss"].item() == pytest.approx(F.cross_entropy(plain(x), y).item(), rel=1e-12)


def test_gradients_are_the_equations() -> None:
    """Every block: dG = (softmax(G) - onehot) / B, dM = dG^T a, dW = ((dG M) * [a > 0])^T a_before."""
    mono, (x, y) = _rule(), _batch()
    mono.backward(x, y)
    a = x
    for layer, project in zip(mono.layers, mono.projections, strict=True):
        linear = layer if isinstance(layer, nn.Linear) else next(m for m in layer.modules() if isinstance(m, nn.Linear))
        before, a = a, (a @ linear.weight.T + linear.bias).clamp(min=0).detach()
        d_scores = ((a @ project.weight.T).softmax(1) - F.one_hot(y, 3)) / len(x)
        d_pre = d_scores @ project.weight * (a > 0)
        torch.testing.assert_close(project.weight.grad, d_scores.T @ a)
        torch.testing.assert_close(linear.weight.grad, d_pre.T @ before)
        torch.testing.assert_close(linear.bias.grad, d_pre.sum(0))


@pytest.mark.parametrize("block", [0, 1, 2])
def test_sequential_stage_is_the_simultaneous_update_of_that_block(block: int) -> None:
    """With the blocks before it held fixed, a stage of the sequential schedule would differ from the joint one."""
    x, y = _batch()
    joint, staged = _rule(), _rule(schedule="sequential")
    staged.load_state_dict(joint.state_dict())
    staged.begin(f"block{block + 1}")
    joint.backward(x, y)
    staged.backward(x, y)
    names = {f"projections.{block}.weight", f"model.block{block + 1}.0.weight", f"model.block{block + 1}.0.bias"}
    found, expected = _gradients(staged), _gradients(joint)
    assert found.keys() == names
    assert all(torch.equal(found[name], expected[name]) for name in names)


def test_later_blocks_do_not_run_in_an_early_stage() -> None:
    """A stage would pay for blocks that it does not need."""
    staged = _rule(schedule="sequential")
    staged.layers[2].register_forward_hook(lambda *_: pytest.fail("block3 ran in the first stage"))
    staged.backward(*_batch())


@pytest.mark.parametrize("readout", ["last", "sum"])
def test_prediction_reads_last_or_all_blocks(readout: str) -> None:
    """Prediction would read other scores than the paper's G_L, or than their sum."""
    mono, (x, _) = _rule(readout=readout), _batch()
    scores, a = [], x
    for name, project in zip(("block1", "block2", "block3"), mono.projections, strict=True):
        a = mono.model.get_submodule(name)(a)
        scores.append(a @ project.weight.T)
    expected = scores[-1] if readout == "last" else sum(scores)
    torch.testing.assert_close(mono.predict(x), expected.detach())
    assert (mono.head() is mono.projections[2]) == (readout == "last")


def test_input_projection_is_logistic_regression_and_predicts_nothing() -> None:
    """M_0 would not be a linear classifier of the raw input, or would take part in the prediction."""
    mono, (x, y) = _rule(schedule="sequential", project_input=True, readout="sum"), _batch()
    assert mono.phase_names == ("raw input", "block1", "block2", "block3")
    before = mono.predict(x)
    mono.backward(x, y)
    weight = mono.projections[0].weight
    expected = ((x @ weight.T).softmax(1) - F.one_hot(y, 3)).T @ x / len(x)
    torch.testing.assert_close(weight.grad, expected.detach())
    assert _gradients(mono).keys() == {"projections.0.weight"}
    with torch.no_grad():
        weight.add_(1.0)
    assert torch.equal(before, mono.predict(x))
    assert list(mono.features(x)) == ["block1", "block2", "block3"]


def test_other_local_losses() -> None:
    """The given loss would not be what each block minimises."""
    mono, (x, y) = _rule(depth=2, loss=nn.CrossEntropyLoss(label_smoothing=0.3)), _batch()
    logs = mono.backward(x, y)
    head, last = mono.head(), mono.features(x)["block2"]
    assert logs["loss/block2"].item() == pytest.approx(F.cross_entropy(head(last), y, label_smoothing=0.3).item())
    assert logs["loss"].item() == pytest.approx(logs["loss/block1"].item() + logs["loss/block2"].item())


def test_convolutional_blocks_are_flattened_for_the_readout() -> None:
    """On images the readout would not see every entry of a feature map."""
    mono = MonoForward(CNN((1, 8, 8), 3, channels=(4, 6), generator=_generator()), 3, generator=_generator(2))
    assert [p.in_features for p in mono.projections] == [4 * 16, 6 * 4]
    mono.backward(torch.randn(8, 1, 8, 8, generator=_generator(1)), torch.arange(8) % 3)
    assert _gradients(mono.model.block1).keys() == {"0.weight", "3.weight", "3.bias"}


def test_readouts_come_from_the_generator_alone() -> None:
    """Readouts would be drawn from the global generator, or the network's own weights be drawn anew."""
    before = torch.get_rng_state()
    a, b = _rule(), _rule()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    model = MLP((6,), 3, generator=_generator())
    weights = copy.deepcopy(model.state_dict())
    MonoForward(model, 3)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "options", [{"schedule": "parallel"}, {"readout": "first"}, {"num_classes": 1}, {"model": nn.Linear(3, 2)}]
)
def test_refuses_bad_options_at_once(options: dict) -> None:
    """A misspelt option or an unfit model would be noticed only after training."""
    with pytest.raises(InvalidInput):
        MonoForward(**({"model": MLP((6,), 3), "num_classes": 3} | options))
