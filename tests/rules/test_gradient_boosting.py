"""Boosted last layers against scikit-learn, derivatives of the losses, and the sums they stand for."""

from __future__ import annotations

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses.focal import FocalLoss
from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.rules import gradient_boosting
from assay.rules._boosting_losses import Differentiable, boosting_loss
from assay.rules._boosting_stage import fit_and_gradient, fresh_stage, residual_fit
from assay.rules.gradient_boosting import GradientBoosting


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rule(outputs: int = 3, units: int = 6, activation: str = "sigmoid", **options: object) -> GradientBoosting:
    model = MLP((4,), outputs, width=units, depth=1, activation=activation, generator=_generator()).double()
    return GradientBoosting(model, generator=_generator(2), **({"step_units": 2} | options))


def _data(classes: int = 3, samples: int = 60) -> tuple[Tensor, Tensor]:
    x = torch.randn(samples, 4, generator=_generator(1)).double()
    y = (x[:, 0] + (x[:, 1] * x[:, 2]).tanh() + 1.5).clamp(0, classes - 1e-3).long()
    return x, y.clamp(max=classes - 1)


def _targets(loss: str) -> Tensor:
    """Targets that the losses take: numbers or classes."""
    x, y = _data(2 if loss == "logistic" else 3)
    return torch.stack([x.sin().sum(1), x[:, 0] ** 2, x[:, 1]], 1) if loss == "squared" else y


LOSSES = ["squared", "logistic", "softmax"]
OUTPUTS = {"squared": 3, "logistic": 2, "softmax": 3}


def _sklearn(phi: Tensor, r: Tensor, stage: tuple[Tensor, ...], iterations: int) -> np.ndarray:
    """What scikit-learn's network predicts after L-BFGS from the same weights."""
    from sklearn.neural_network import MLPRegressor

    U, a, V, c = (part.double().numpy() for part in stage)
    network = MLPRegressor(
        hidden_layer_sizes=(len(a),), activation="logistic", solver="lbfgs", tol=0.0, max_iter=1, warm_start=True
    )
    targets = r.numpy() if r.shape[1] > 1 else r.numpy().ravel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.fit(phi.numpy(), targets)
        network.coefs_, network.intercepts_ = [U.T.copy(), V.T.copy()], [a.copy(), c.copy()]
        network.set_params(max_iter=iterations).fit(phi.numpy(), targets)
    return network.predict(phi.numpy()).reshape(r.shape)


@pytest.mark.parametrize("loss", LOSSES)
def test_boosting_is_scikit_learns_networks_stage_by_stage(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Residuals, fits, step lengths or their sum would differ from the algorithm on scikit-learn's MLPRegressor.

    Of several outputs scikit-learn's loss is the mean and its gradient that of the sum, which its line search notices.
    """
    from sklearn.neural_network import _multilayer_perceptron as perceptron

    summed = {"squared_error": lambda y, h, _: ((y - h) ** 2).sum(1).mean() / 2}
    monkeypatch.setattr(perceptron, "LOSS_FUNCTIONS", summed)
    x, y = _data()[0], _targets(loss)
    rule = _rule(OUTPUTS[loss], loss=loss, shrinkage=0.7, subsample=1.0, max_iterations=12)
    twin, k = _generator(2), 1 if loss == "logistic" else 3
    signs = 2.0 * y[:, None].double() - 1
    raw = torch.zeros(len(x), k).double()
    if loss == "squared":
        raw = raw + y.mean(0)
    elif loss == "logistic":
        raw = raw + 0.5 * math.log((1 + signs.mean()) / (1 - signs.mean()))
    for _ in range(3):
        if loss == "squared":
            r = y - raw
        elif loss == "logistic":
            r = 2 * signs / (1 + torch.exp(2 * signs * raw))
        else:
            r = F.one_hot(y, 3) - raw.softmax(1)
        stage = fresh_stage((4, 2, k), nn.Sigmoid(), twin)
        f = torch.from_numpy(_sklearn(x, r, stage, 12))
        newton = torch.tensor(1.0)
        if loss == "logistic":
            newton = (r * f).sum() / (r * f * f * (2 * signs - r)).sum()
        elif loss == "softmax":
            newton = (r * f).sum() / (f * f * raw.softmax(1) * (1 - raw.softmax(1))).sum()
        raw = raw + 0.7 * newton * f
    rule.fit(x, y)
    expected = torch.cat([-raw, raw], 1) if loss == "logistic" else raw
    torch.testing.assert_close(rule.predict(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.GELU()])
def test_gradient_by_hand_is_autograds(activation: nn.Module) -> None:
    """L-BFGS would be told a wrong slope."""
    phi, r = torch.randn(9, 4, generator=_generator(1)).double(), torch.randn(9, 3, generator=_generator(2)).double()
    stage = [part.double().requires_grad_() for part in fresh_stage((4, 2, 3), activation, _generator())]
    U, a, V, c = stage
    loss = residual_fit(F.linear(activation(F.linear(phi, U, a)), V, c), r, U, V, 0.3)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, stage)])
    values = torch.cat([part.detach().flatten() for part in stage]).numpy()
    found, gradient = fit_and_gradient(values, phi.numpy(), r.numpy(), activation, 0.3)
    assert found == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-9, atol=1e-12)


CRITERIA = {
    "squared": lambda y, raw: (y - raw).square().sum() / 2,
    "logistic": lambda y, raw: torch.log(1 + torch.exp(-2 * (2.0 * y[:, None] - 1) * raw)).sum(),
    "softmax": lambda y, raw: F.cross_entropy(raw, y, reduction="sum"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_residuals_and_steps_are_the_losses_derivatives(loss: str) -> None:
    """Boosting would follow another direction than the gradient, or step too far or short along it."""
    y, own = _targets(loss), boosting_loss(loss)
    k, targets = len(own.encoding(OUTPUTS[loss])), own.targets(y, OUTPUTS[loss]).double()
    raw = torch.randn(len(y), k, generator=_generator(3)).double().requires_grad_()
    f = torch.randn(len(y), k, generator=_generator(4)).double()
    (slope,) = torch.autograd.grad(CRITERIA[loss](y, raw), raw, create_graph=True)
    torch.testing.assert_close(own.residual(targets, raw.detach()), -slope.detach())
    # The sum over entries of the Hessian's diagonal times f^2; samples don't interact, classes do.
    diagonal = torch.zeros_like(f)
    for j in range(k):
        diagonal[:, j] = torch.autograd.grad(slope[:, j].sum(), raw, retain_graph=True)[0][:, j]
    expected = -(slope * f).sum() / (diagonal * f.square()).sum()
    if loss != "squared":
        assert own.newton(targets, raw.detach(), f) == pytest.approx(expected.item(), rel=1e-9)
    assert own.value(targets, raw.detach()).item() * len(y) == pytest.approx(
        CRITERIA[loss](y, raw).item() / (3 if loss == "squared" else 1), rel=1e-9
    )


def test_any_criterion_gives_exact_newton_steps() -> None:
    """A user's loss would be boosted along something else than its gradient, or with another curvature."""
    y, f = _targets("softmax"), torch.randn(60, 3, generator=_generator(4)).double()
    raw = torch.randn(60, 3, generator=_generator(3)).double()
    own, reference = Differentiable(nn.CrossEntropyLoss(label_smoothing=0.0)), boosting_loss("softmax")
    torch.testing.assert_close(
        own.residual(y, raw), reference.residual(reference.targets(y, 3).double(), raw), rtol=1e-6, atol=1e-9
    )
    p = raw.softmax(1)
    exact = ((f * f * p).sum(1) - (f * p).sum(1) ** 2).sum()
    slope = ((F.one_hot(y, 3) - p) * f).sum()
    assert own.newton(y, raw, f) == pytest.approx((slope / exact).item(), rel=1e-6)
    rule = _rule(loss=FocalLoss(gamma=2.0), shrinkage=0.5)
    x = _data()[0]
    losses = rule.fit(x, y)
    assert losses[-1] < losses[0] < FocalLoss(gamma=2.0)(torch.zeros(60, 3), y).item()
    assert losses[-1] == pytest.approx(FocalLoss(gamma=2.0)(rule.predict(x), y).item(), rel=1e-9)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_boosting_starts_at_the_best_constant(loss: str) -> None:
    """Stages would be spent on what one number says."""
    x, y = _data()[0], _targets(loss)
    rule = _rule(OUTPUTS[loss], loss=loss)
    rule.fit(x, y)
    start = rule.staged_scores(x)[0]
    if loss == "squared":
        torch.testing.assert_close(start, y.mean(0).expand_as(start))
    else:
        torch.testing.assert_close(start.softmax(1)[:, 1], y.double().mean().expand(len(x)))


def test_criteria_are_recognised() -> None:
    """A plain criterion would lose the paper's step and start, or a special one be taken for it."""
    names = [
        type(boosting_loss(each)).__name__
        for each in (F.cross_entropy, nn.CrossEntropyLoss(), F.mse_loss, nn.MSELoss(), nn.L1Loss())
    ]
    assert names == ["Softmax", "Softmax", "Squared", "Squared", "Differentiable"]
    for special in (nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(torch.ones(3))):
        assert isinstance(boosting_loss(special), Differentiable)


@pytest.mark.parametrize("loss", LOSSES)
def test_first_stages_are_the_network_that_stopped_there(loss: str) -> None:
    """Switching late units off would not give back the earlier stage."""
    x, y = _data()[0], _targets(loss)
    rule, seen = _rule(OUTPUTS[loss], loss=loss), []
    for _ in rule.phases(3):
        rule.step(x, y, torch.optim.SGD(rule.parameters(), lr=0.1))
        seen.append(rule.predict(x))
    staged = rule.staged_scores(x)
    assert len(staged) == 4
    for stages, expected in enumerate(seen, start=1):
        torch.testing.assert_close(staged[stages], expected)
        module = rule.to_module(stages)
        torch.testing.assert_close(module(x).detach(), expected)
        assert module[1].out_features == 2 * stages
    with pytest.raises(InvalidInput, match="from 1 to 3"):
        rule.to_module(4)
    torch.testing.assert_close(rule.model(x).detach(), seen[-1])


def test_squared_loss_never_rises_with_exact_fits() -> None:
    """With all samples and no shrinkage a stage would make the fit worse."""
    x, y = _data()[0], _targets("squared")
    losses = _rule(3, units=8, loss="squared", shrinkage=1.0, subsample=1.0).fit(x, y)
    start = (y - y.mean(0)).square().mean().item() / 2
    assert all(b <= a for a, b in zip([start, *losses], losses, strict=False)) and losses[-1] < 0.7 * start


def test_flat_losses_and_wild_steps_are_bounded() -> None:
    """Certain predictions would divide zero by zero, or one wrong sample throw the network away."""
    own, y = boosting_loss("softmax"), torch.arange(6) % 3
    targets = own.targets(y, 3).double()
    f = torch.randn(6, 3, generator=_generator()).double()
    assert own.newton(targets, 1e4 * targets, f) == 0.0
    assert own.newton(targets, -15 * targets, f * 1e-3) in (-100.0, 100.0)
    signs = boosting_loss("logistic").targets(y % 2, 2).double()
    assert boosting_loss("logistic").newton(signs, 1e4 * signs, f[:, :1]) == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_backward_is_the_gradient_of_the_stages_residual_fit(loss: str) -> None:
    """A mini-batch loop would train other units too, or another objective."""
    x, y = _data()[0], _targets(loss)
    rule = _rule(OUTPUTS[loss], loss=loss, weight_decay=0.5)
    phases = iter(rule.phases(3))
    next(phases)
    rule.step(x, y, torch.optim.SGD(rule.parameters(), lr=0.1))
    next(phases)
    before = rule.predict(x)
    U, a = (p.detach()[2:4].clone().requires_grad_() for p in (rule.hidden.weight, rule.hidden.bias))
    V, c = torch.zeros(len(before[0]), 2).double().requires_grad_(), torch.zeros(len(before[0])).double()
    c.requires_grad_()
    encoding = boosting_loss(loss).encoding(OUTPUTS[loss]).double()
    back = torch.linalg.pinv(encoding)
    raw = (before @ back).requires_grad_()
    (slope,) = torch.autograd.grad(CRITERIA[loss](y, raw), raw)
    h = (F.linear(torch.sigmoid(F.linear(x, U, a)), V, c)) @ back
    decay = 0.5 / len(x) * (U.square().sum() + (back.T @ V).square().sum())
    (((h + slope) ** 2).sum(1).mean() / 2 + decay / 2).backward()
    rule.backward(x, y)
    torch.testing.assert_close(rule.hidden.weight.grad[2:4], U.grad)
    torch.testing.assert_close(rule.output.weight.grad[:, 2:4], V.grad)
    torch.testing.assert_close(rule.output.bias.grad, c.grad)
    others = [0, 1, 4, 5]
    assert not rule.hidden.weight.grad[others].any() and not rule.output.weight.grad[:, others].any()


def test_a_loop_of_ones_own_boosts_too() -> None:
    """Stages trained by mini-batches would not add up, or be scaled by something else than the Newton step."""
    x, y = _data()
    rule = _rule(shrinkage=0.5)
    rule.start(y)
    before = F.cross_entropy(rule.predict(x), y)
    for phase in rule.phases(3):
        optimizer = torch.optim.Adam(phase.parameters, lr=0.05)
        start = rule.predict(x)
        for _ in range(15):
            for rows in torch.arange(60).split(20):
                optimizer.zero_grad(set_to_none=True)
                rule.backward(x[rows], y[rows])
                optimizer.step()
        f = rule.predict(x) - start
        after = rule.line_search(x, y)
        p = start.softmax(1)
        newton = ((F.one_hot(y, 3) - p) * f).sum() / (f * f * p * (1 - p)).sum()
        torch.testing.assert_close(rule.predict(x), start + 0.5 * newton * f)
        assert after.item() == pytest.approx(F.cross_entropy(rule.predict(x), y).item(), rel=1e-9)
        assert after < before
        before = after


def test_a_stage_that_is_not_scaled_keeps_its_bias() -> None:
    """Forgetting the line search would change the network when the next stage begins."""
    x, y = _data()
    rule = _rule()
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.5)
    rule.backward(x, y)
    optimizer.step()
    before = rule.predict(x)
    rule.begin("stage2")
    assert torch.equal(rule.predict(x), before)


def test_boosting_again_starts_anew() -> None:
    """A second fit would add to the first, or take over its constant."""
    x, y = _data()[0], _targets("squared")
    rule, fresh = (_rule(loss="squared", max_iterations=10) for _ in range(2))
    rule.fit(x, 5 + y)
    rule.generator.manual_seed(2)
    rule.fit(x, y)
    fresh.fit(x, y)
    torch.testing.assert_close(rule.predict(x), fresh.predict(x))


def test_a_second_step_improves_the_stages_fit() -> None:
    """With more passes than stages the later passes would throw the fit away."""
    x, y = _data()[0], _targets("squared")
    rule = _rule(loss="squared", subsample=1.0, shrinkage=1.0, max_iterations=5)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1)
    losses = [rule.step(x, y, optimizer)["loss"].item() for _ in range(4)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_a_stage_sees_its_share_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The subsample would be ignored, drawn with repetition, or the same in every stage."""
    seen, original = [], gradient_boosting.fitted_stage

    def spy(stage: object, phi: Tensor, *rest: object) -> object:
        seen.append(phi)
        return original(stage, phi, *rest)

    monkeypatch.setattr(gradient_boosting, "fitted_stage", spy)
    x, y = _data()
    _rule(subsample=0.33).fit(x, y)
    assert [len(phi.unique(dim=0)) for phi in seen] == [19] * 3
    assert not torch.equal(seen[0].sort(0)[0], seen[1].sort(0)[0])


def test_the_body_stays_and_runs_once() -> None:
    """A pretrained body would be moved, or run again for every stage."""
    images, y = torch.randn(30, 1, 8, 8, generator=_generator(1)), torch.arange(30) % 3
    body = CNN((1, 8, 8), 3, channels=(4,), generator=_generator())[:-1]
    model = nn.Sequential(body, nn.Linear(64, 6), nn.Sigmoid(), nn.Linear(6, 3))
    rule = GradientBoosting(model, step_units=2, generator=_generator(2))
    before = {name: value.clone() for name, value in body.state_dict().items()}
    runs = []
    hook = body[0][0].register_forward_hook(lambda *_: runs.append(1))
    rule.fit(images, y)
    assert len(runs) == 1
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    rule.fit(images + 1, y)
    assert len(runs) == 2, "other inputs are other features"
    with torch.no_grad():
        body[0][0].weight.mul_(2)
    rule.fit(images + 1, y)
    assert len(runs) == 3, "another body gives other features"
    hook.remove()
    assert list(rule.features(images)) == ["body", "hidden"]
    assert torch.equal(pickle.loads(pickle.dumps(rule)).predict(images), rule.predict(images))


def test_regression_takes_plain_vectors() -> None:
    """Targets (N,) of one output would be spread over all pairs."""
    x, y = _data()[0], _targets("squared")[:, 0]
    plain, column = (_rule(1, loss="squared") for _ in range(2))
    assert plain.fit(x, y) == column.fit(x, y[:, None])


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(4, 3), {}, "ends in Linear"),
        (nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), {}, "ends in Linear"),
        (nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 3)), {}, "PReLU"),
        (CNN((1, 8, 8), 3), {}, "BatchNorm2d - Flatten - Linear"),
        (nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)), {}, "with biases"),
        (nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 3)), {}, "each alone"),
        (MLP((4,), 3, width=6), {"step_units": 4}, "divide"),
        (MLP((4,), 3, width=6), {"shrinkage": 0.0}, "shrinkage"),
        (MLP((4,), 3, width=6), {"subsample": 1.5}, "subsample"),
        (MLP((4,), 3, width=6), {"max_iterations": 0}, "max_iterations"),
        (MLP((4,), 3, width=6), {"loss": "hinge"}, "squared, logistic, softmax"),
        (MLP((4,), 3, width=6), {"loss": "logistic"}, "two classes"),
    ],
)
def test_refuses_what_it_cannot_boost(model: nn.Module, options: dict, message: str) -> None:
    """A network without layers to build, or a number out of range, would fail in mid-training."""
    with pytest.raises(InvalidInput, match=message):
        GradientBoosting(model, **options)


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        ("softmax", torch.full((60,), 3), "from 0 to 2"),
        ("softmax", torch.zeros(60, 3), "class labels"),
        ("squared", torch.zeros(60, dtype=torch.long), "real numbers"),
        ("squared", torch.zeros(60, 2), r"\(B, 3\)"),
    ],
)
def test_refuses_targets_of_another_kind(loss: str, y: Tensor, message: str) -> None:
    """Targets would be broadcast against scores that they do not belong to."""
    with pytest.raises(InvalidInput, match=message):
        _rule(loss=loss).fit(_data()[0], y)
    sequences = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with pytest.raises(InvalidInput, match="one vector per sample"):
        GradientBoosting(sequences, loss="softmax").fit(*_data())
