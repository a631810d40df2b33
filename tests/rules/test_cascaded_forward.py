"""Cascaded Forward against NumPy's direct feedback alignment, logistic regression and backpropagation."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.rules.cascaded_forward import CascadedForward
from assay.rules.fitting import fit


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 1, 8, 8, generator=_generator(1)), torch.arange(16) % 3


def _cnn(**options: object) -> CascadedForward:
    model = CNN((1, 8, 8), 3, channels=(4, 6), generator=_generator())
    return CascadedForward(model, 3, generator=_generator(2), **options)


def _train(rule: CascadedForward, epochs: int) -> None:
    fit(rule, [_images()], epochs, partial(torch.optim.SGD, lr=0.1))


def test_random_blocks_and_their_buffers_never_move() -> None:
    """Training the predictors would change the blocks, or the statistics of their batch normalisation."""
    rule = _cnn()
    before = {name: value.clone() for name, value in rule.model.state_dict().items()}
    predictors = [p.weight.clone() for p in rule.predictors]
    _train(rule, 4)
    assert all(torch.equal(value, before[name]) for name, value in rule.model.state_dict().items())
    assert not any(torch.equal(p.weight, old) for p, old in zip(rule.predictors, predictors, strict=True))


def test_fresh_batch_norm_is_the_identity_on_random_blocks() -> None:
    """Random features would be normalised by statistics of the mini-batch."""
    rule, (x, _) = _cnn(), _images()
    h = F.max_pool2d(F.relu(F.conv2d(x, rule.model.block1[0].weight, padding=1)), 2)
    torch.testing.assert_close(rule.features(x)["block1"], h.detach(), rtol=1e-4, atol=1e-5)
    rule.train()
    rule.begin("block2")
    rule.backward(*_images())
    assert not rule.model.block1[3].num_batches_tracked


def test_predictor_is_logistic_regression_on_its_block() -> None:
    """A predictor's gradient would not be that of logistic regression on frozen features."""
    rule, (x, y) = _cnn(), _images()
    for index, (name, features) in enumerate(rule.features(x).items()):
        rule.begin(name)
        rule.backward(x, y)
        predictor, h = rule.predictors[index], features.flatten(1)
        error = (F.linear(h, predictor.weight, predictor.bias).softmax(1) - F.one_hot(y, 3)) / len(x)
        torch.testing.assert_close(predictor.weight.grad, (error.T @ h).detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(predictor.bias.grad, error.sum(0).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("readout", ["sum", "last"])
def test_prediction_sums_the_predictors(readout: str) -> None:
    """Prediction would not be the sum of all predictors' scores, or of the last one alone."""
    rule, (x, _) = _cnn(readout=readout), _images()
    features = list(rule.features(x).values())
    if readout == "last":
        features = features[-1:]
    expected = sum(p(h.flatten(1)) for p, h in zip(rule.predictors, features, strict=True))
    torch.testing.assert_close(rule.predict(x), expected.detach())
    assert rule.phase_names == (("block1", "block2") if readout == "sum" else ("block2",))
    assert rule.head() is (None if readout == "sum" else rule.predictors[0])


def test_early_predictor_does_not_run_later_blocks() -> None:
    """A predictor would pay for blocks that it does not read."""
    rule = _cnn()
    rule.model.block2.register_forward_hook(lambda *_: pytest.fail("block2 ran for the first predictor"))
    rule.backward(*_images())


def test_feedback_alignment_is_the_equations() -> None:
    """Direct feedback alignment would differ from its equations, written out in NumPy."""
    model = MLP((6,), 3, width=(5, 4, 7), generator=_generator()).double()
    rule = CascadedForward(model, 3, features="dfa", generator=_generator(2))
    x, y = torch.randn(10, 6, generator=_generator(1)).double(), torch.arange(10) % 3
    rule.backward(x, y)
    linears = [block[0] for block in (model.block1, model.block2, model.block3)]
    h = [x.numpy()]
    for linear in linears:
        h.append(np.maximum(h[-1] @ linear.weight.detach().numpy().T + linear.bias.detach().numpy(), 0))
    top = rule.top.weight.detach().numpy()
    scores = h[-1] @ top.T + rule.top.bias.detach().numpy()
    softmax = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    error = (softmax - np.eye(3)[y.numpy()]) / 10
    for index, linear in enumerate(linears):
        back = top if index == 2 else rule.get_buffer(f"feedback{index}").numpy()
        delta = (error @ back) * (h[index + 1] > 0)
        np.testing.assert_allclose(linear.weight.grad.numpy(), delta.T @ h[index], rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(linear.bias.grad.numpy(), delta.sum(0), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(rule.top.weight.grad.numpy(), error.T @ h[-1], rtol=1e-9, atol=1e-13)


def test_true_jacobian_as_feedback_is_backprop() -> None:
    """With the true Jacobian in place of the random matrix, feedback alignment is backpropagation."""
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, 4), nn.Identity()).double()
    rule = CascadedForward(model, 3, features="dfa", generator=_generator(2))
    with torch.no_grad():
        rule.get_buffer("feedback0").copy_(rule.top.weight @ model[1].weight)
    x, y = torch.randn(10, 6, generator=_generator(1)).double(), torch.arange(10) % 3
    rule.backward(x, y)
    trained = rule.trained_parameters()
    found = [p.grad.clone() for p in trained]
    rule.zero_grad()
    F.cross_entropy(rule.top(model(x)), y).backward()
    for a, p in zip(found, trained, strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-9, atol=1e-13)


def test_feedback_is_fixed_with_rows_of_norm_one() -> None:
    """Feedback matrices would be trained, or not have the paper's scale."""
    rule = _cnn(features="dfa")
    feedback = rule.get_buffer("feedback0").clone()
    torch.testing.assert_close(feedback.norm(dim=1), torch.ones(3))
    _train(rule, 3)
    assert torch.equal(feedback, rule.get_buffer("feedback0"))


def test_feature_phase_trains_blocks_then_freezes_them() -> None:
    """The features would go on moving while the predictors train, or the head in the user's model be trained."""
    rule = _cnn(features="dfa")
    start = {name: value.clone() for name, value in rule.model.state_dict().items()}
    snapshots = {}
    for phase in rule.phases(3):
        rule.train()
        optimizer = torch.optim.SGD(phase.parameters, lr=0.1)
        for _ in range(2):
            rule.step(*_images(), optimizer)
        snapshots[phase.name] = {name: value.clone() for name, value in rule.model.state_dict().items()}
    assert list(snapshots) == ["dfa", "block1", "block2"]
    assert snapshots["dfa"]["block1.3.num_batches_tracked"] == 2
    moved = {name for name, value in snapshots["dfa"].items() if not torch.equal(value, start[name])}
    assert {"block1.0.weight", "block2.0.weight"} <= moved and not {"head.weight", "head.bias"} & moved
    assert all(torch.equal(value, snapshots["dfa"][name]) for name, value in snapshots["block2"].items())


@pytest.mark.parametrize(
    "options", [{"features": "learned"}, {"readout": "first"}, {"num_classes": 1}, {"model": nn.Linear(3, 2)}]
)
def test_refuses_bad_options_at_once(options: dict) -> None:
    """A misspelt option or an unfit model would be noticed only after training."""
    with pytest.raises(InvalidInput):
        CascadedForward(**({"model": CNN((1, 8, 8), 3), "num_classes": 3} | options))
