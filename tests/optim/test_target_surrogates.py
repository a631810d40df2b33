"""Target surrogates: the upper bound and what follows from it, closed forms of exact inner minimisation, and limits."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.optim.armijo import ArmijoDescent
from assay.optim.target_surrogates import TargetSurrogate, quadratic_surrogate

DOUBLE = torch.float64


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def _network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


X, LABELS = _normal(12, 4), torch.arange(12) % 3


def _cross_entropy(z: Tensor) -> Tensor:
    return F.cross_entropy(z, LABELS)


def _lbfgs(parameters: object) -> torch.optim.Optimizer:
    """Return an inner solver that minimises a quadratic to rounding."""
    return torch.optim.LBFGS(
        parameters,  # type: ignore[arg-type]
        max_iter=200,
        tolerance_grad=1e-13,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )


@given(seed=st.integers(0, 10**6), eta=st.floats(0.05, 2.0), spread=st.floats(0.01, 30))
@settings(max_examples=30, deadline=None)
def test_the_surrogate_lies_above_the_loss(seed: int, eta: float, spread: float) -> None:
    """For eta <= 1 / L, 2 for the mean of softmax cross-entropies, descent on it would not be descent on the loss."""
    z_t, z = spread * _normal(12, 3, seed=seed).requires_grad_(), spread * _normal(12, 3, seed=seed + 1)
    value = _cross_entropy(z_t)
    (G,) = torch.autograd.grad(value, z_t)
    assert quadratic_surrogate(z, z_t.detach(), G, value.detach(), eta * 12) >= _cross_entropy(z) - 1e-12
    touching = quadratic_surrogate(z_t.detach(), z_t.detach(), G, value.detach(), eta)
    torch.testing.assert_close(touching, value.detach())


@pytest.mark.parametrize("inner_steps", [1, 5, 20])
@pytest.mark.parametrize("inner", ["armijo", "sgd", "lbfgs"])
def test_the_full_loss_never_rises(inner: str, inner_steps: int) -> None:
    """Majorise-minimise: with eta = 1 / L any inner descent, exact or not, must make the loss of the network fall."""
    model = _network()
    base: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "armijo": lambda: ArmijoDescent(model.parameters()),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.05),
        "lbfgs": lambda: torch.optim.LBFGS(model.parameters(), max_iter=3, line_search_fn="strong_wolfe"),
    }
    optimizer = TargetSurrogate(base[inner](), eta=2.0, inner_steps=inner_steps)
    losses = [float(optimizer.step(lambda: model(X), _cross_entropy)) for _ in range(8)]
    losses.append(float(_cross_entropy(model(X)).detach()))
    assert all(after < before for before, after in itertools.pairwise(losses))


def test_one_inner_step_is_sgd() -> None:
    """The surrogate's gradient at the start would not be that of the loss."""
    surrogate, plain = _network(), _network()
    optimizer = TargetSurrogate(torch.optim.SGD(surrogate.parameters(), lr=0.3), eta=0.7, inner_steps=1)
    sgd = torch.optim.SGD(plain.parameters(), lr=0.3)
    for _ in range(3):
        returned = optimizer.step(lambda: surrogate(X), _cross_entropy)
        sgd.zero_grad()
        loss = _cross_entropy(plain(X))
        loss.backward()
        sgd.step()
        torch.testing.assert_close(returned, loss.detach())
        for a, b in zip(surrogate.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-12, atol=1e-14)
    assert optimizer.counts["forwards"] == optimizer.counts["backwards"] == 3  # what SGD costs


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_exact_inner_minimisation_is_projected_descent_on_the_outputs(reduction: str) -> None:
    """The step size eta would absorb n, or the targets not be z - eta G; P is the projector on what a linear model can give."""
    W = nn.Parameter(_normal(4, 3, seed=3))
    optimizer = TargetSurrogate(_lbfgs([W]), eta=1.3, inner_steps=3, reduction=reduction)

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(z, LABELS, reduction=reduction)

    z = (X @ W).detach()
    for _ in range(3):
        per_example = z.softmax(1) - F.one_hot(LABELS, 3)
        z = z - 1.3 * X @ torch.linalg.lstsq(X, per_example).solution
        optimizer.step(lambda: X @ W, loss)
        torch.testing.assert_close((X @ W).detach(), z, rtol=1e-6, atol=1e-7)


def test_half_squared_error_is_solved_by_one_query() -> None:
    """With eta = 1 the targets are the labels: one outer step must be the least-squares solution."""
    W, y = nn.Parameter(_normal(4, 2, seed=5)), _normal(12, 2, seed=6)
    optimizer = TargetSurrogate(_lbfgs([W]), eta=1.0, inner_steps=2, reduction="sum")
    optimizer.step(lambda: X @ W, lambda z: (z - y).square().sum() / 2)
    torch.testing.assert_close(W.detach(), torch.linalg.lstsq(X, y).solution, rtol=1e-7, atol=1e-8)
    assert optimizer.counts["target_queries"] == 1


@pytest.mark.parametrize("schedule", ["constant", "sqrt", "exponential"])
def test_for_the_identity_it_is_gradient_descent_at_eta(schedule: str) -> None:
    """The step sizes of the outputs would not follow their schedule."""
    w, target = nn.Parameter(_normal(5)), _normal(5, seed=1)
    etas = {
        "constant": [0.4] * 4,
        "sqrt": [0.4 / (t + 1) ** 0.5 for t in range(4)],
        "exponential": [0.4 * 0.25 ** (t / 4) for t in range(4)],
    }[schedule]
    total = 4 if schedule == "exponential" else None
    optimizer = TargetSurrogate(_lbfgs([w]), 0.4, 1, schedule, total, reduction="sum")
    point = w.detach().clone()
    for eta in etas:
        optimizer.step(lambda: w * 1.0, lambda z: (z - target).pow(4).sum())
        point = point - eta * 4 * (point - target).pow(3)
        torch.testing.assert_close(w.detach(), point, rtol=1e-7, atol=1e-8)


def test_the_line_search_delivers_its_share_and_grows_again() -> None:
    """The step size eta would be too large for a loss, or stay small after one hard batch; n must cancel for a mean."""
    W = nn.Parameter(_normal(4, 3, seed=3))
    optimizer = TargetSurrogate(ArmijoDescent([W]), eta=500.0, inner_steps=2, eta_schedule="line_search")
    for _ in range(4):
        z = (X @ W).detach().requires_grad_()
        value = _cross_entropy(z)
        (G,) = torch.autograd.grad(value, z)
        optimizer.step(lambda: X @ W, _cross_entropy)
        share = 0.5 * optimizer.eta * 12 * G.square().sum()
        assert _cross_entropy(z - optimizer.eta * 12 * G) <= value - share
        assert 2.0 * 0.9 <= optimizer.eta <= 500.0  # 1 / L always delivers half the slope
    before, optimizer.eta = optimizer.eta, 0.01
    optimizer.step(lambda: X @ W, _cross_entropy)
    assert 0.01 < optimizer.eta < before and optimizer.counts["target_values"] >= 5


@pytest.mark.parametrize("schedule", ["constant", "line_search"])
def test_a_loss_may_make_its_gradient_by_autograd(schedule: str) -> None:
    """The search would call it where autograd is off, or with outputs that ask for no gradient."""
    ends = []
    for own in (False, True):
        w = nn.Parameter(_normal(4))

        def loss(z: Tensor, own: bool = own) -> object:
            value = z.pow(4).sum()
            return (value.item(), torch.autograd.grad(value, z)[0]) if own else value

        optimizer = TargetSurrogate(ArmijoDescent([w]), eta=0.02, eta_schedule=schedule, reduction="sum")
        for _ in range(3):
            optimizer.step(lambda w=w: w * 1.0, loss)
        ends.append(w.detach())
    assert torch.equal(ends[0], ends[1]) and ends[0].norm() < _normal(4).norm()


def test_the_line_search_tries_a_small_eta_as_it_is() -> None:
    """It would be raised to official code's bound of 1e-4: from 1 to 1 - 1e-4 * 1e5 = -9 in one step."""
    w = nn.Parameter(torch.ones(3, dtype=DOUBLE))
    optimizer = TargetSurrogate(_lbfgs([w]), 1e-6, 1, "line_search", reduction="sum")
    optimizer.step(lambda: w * 1.0, lambda z: 1e5 * z.square().sum() / 2)
    torch.testing.assert_close(w.detach(), torch.full((3,), 0.9, dtype=DOUBLE), rtol=1e-6, atol=0)
    assert optimizer.eta == 1e-6 and optimizer.counts["target_values"] == 1


def test_the_line_search_takes_nothing_that_it_has_not_tried() -> None:
    """It would end at its lower bound untested: with a smoothness of 1e6 the outputs go from 1 to -99."""
    w, tried = nn.Parameter(torch.ones(3, dtype=DOUBLE)), []

    def loss(z: Tensor) -> Tensor:
        tried.append(z.detach())
        return 1e6 * z.square().sum() / 2

    optimizer = TargetSurrogate(_lbfgs([w]), 1.0, 1, "line_search", reduction="sum")
    for _ in range(2):
        optimizer.step(lambda: w * 1.0, loss)
    assert torch.equal(w.detach(), torch.ones(3, dtype=DOUBLE)) and optimizer.eta == 1.0
    moved = [1.0 - z[0].item() for z in tried if z[0] != 1]  # eta times the slope of 1e6
    assert min(moved) < 1e-4 * 1e6 / 0.9 and optimizer.counts["target_values"] == len(moved)


def test_a_run_with_a_line_search_goes_on_from_its_state_dict() -> None:
    """The step size found so far would be searched anew from the first, and the run differ from an unbroken one."""
    w = nn.Parameter(_normal(5))
    optimizer = TargetSurrogate(ArmijoDescent([w]), 300.0, 2, "line_search", reduction="sum")
    for _ in range(2):
        optimizer.step(lambda: w * 1.0, lambda z: z.pow(4).sum())
    v = nn.Parameter(w.detach().clone())
    again = TargetSurrogate(ArmijoDescent([v]), 300.0, 2, "line_search", reduction="sum")
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        optimizer.step(lambda: w * 1.0, lambda z: z.pow(4).sum())
        again.step(lambda: v * 1.0, lambda z: z.pow(4).sum())
    assert torch.equal(v.detach(), w.detach())
    assert again.eta == optimizer.eta < 300 and again.counts == optimizer.counts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_give_what_they_give_in_float32(dtype: torch.dtype) -> None:
    """Gradients of a mean over many examples would vanish in the outputs' type, and sums over outputs lose their digits."""
    x = _normal(4000, 5).float()
    y = (x @ _normal(5, 3, seed=1).float()).argmax(1)
    ends = []
    for convert in (False, True):
        w = nn.Parameter(torch.zeros(5, 3))
        optimizer = TargetSurrogate(ArmijoDescent([w]), eta=8.0, inner_steps=5)

        def forward(w: Tensor = w, convert: bool = convert) -> Tensor:
            outputs = (x @ w).to(dtype)
            return outputs.float() if convert else outputs

        for _ in range(3):
            value = optimizer.step(forward, lambda z: F.cross_entropy(z.float(), y))
        ends.append((w.detach(), value, optimizer.counts))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    assert ends[0][1] < 0.7


def test_a_loss_that_brings_its_own_gradient_is_never_differentiated() -> None:
    """A simulator could not be used: it knows values and gradients of outputs but has no graph."""
    plain, black_box = _network(), _network()
    runs = [TargetSurrogate(ArmijoDescent(m.parameters()), eta=2.0, inner_steps=4) for m in (plain, black_box)]
    calls = []

    def simulator(z: Tensor) -> tuple[float, Tensor]:
        calls.append(z.requires_grad)
        with torch.no_grad():
            return float(_cross_entropy(z)), (z.softmax(1) - F.one_hot(LABELS, 3)) / 12

    for _ in range(3):
        runs[0].step(lambda: plain(X), _cross_entropy)
        runs[1].step(lambda: black_box(X), simulator)
    assert len(calls) == 3 == runs[1].counts["target_queries"]
    for a, b in zip(plain.parameters(), black_box.parameters(), strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-9, atol=1e-11)


def test_counts_are_what_was_spent() -> None:
    """The comparison at equal queries or equal passes would be unfair."""
    model, passes, queries = _network(), [], []

    def forward() -> Tensor:
        passes.append(1)
        return model(X)

    def loss(z: Tensor) -> Tensor:
        queries.append(1)
        return _cross_entropy(z)

    optimizer = TargetSurrogate(ArmijoDescent(model.parameters()), inner_steps=5, grad_tol=0.0)
    for _ in range(4):
        optimizer.step(forward, loss)
    assert len(queries) == 4 == optimizer.counts["target_queries"] and optimizer.counts["target_values"] == 0
    assert len(passes) == optimizer.counts["forwards"] and optimizer.counts["inner_steps"] == 20
    assert optimizer.counts["backwards"] == 20


def test_inner_steps_stop_at_a_flat_surrogate_and_other_parameters_get_no_gradients() -> None:
    """Steps would be wasted, or a frozen part of the model collect gradients that nobody clears."""
    w, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = TargetSurrogate(torch.optim.SGD([w], lr=0.5), inner_steps=50, reduction="sum")
    optimizer.step(lambda: w * other, lambda z: z.square().sum() / 2)
    assert optimizer.counts["inner_steps"] < 50 and other.grad is None


@pytest.mark.parametrize("restart", [True, False])
def test_state_of_the_base_is_forgotten_or_kept(restart: bool) -> None:
    """Momentum of one surrogate would push the next, or would not where it is asked for."""
    w = nn.Parameter(torch.tensor([1.0]))
    base = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    optimizer = TargetSurrogate(base, eta=1e9, inner_steps=1, reduction="sum", restart=restart)
    optimizer.step(lambda: w * 1.0, lambda z: z.sum())  # w = 0.9, momentum 1
    optimizer.step(lambda: w * 1.0, lambda z: 0 * z.sum())
    assert w.item() == pytest.approx(0.9 if restart else 0.81)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_query_that_is_not_finite_moves_nothing(bad: float) -> None:
    """One failed simulation would destroy the model."""
    w = nn.Parameter(torch.ones(2))
    optimizer = TargetSurrogate(ArmijoDescent([w]))
    for answer in ((bad, torch.ones(2)), (1.0, torch.tensor([bad, 0.0]))):
        optimizer.step(lambda: w * 1.0, lambda z, answer=answer: answer)  # type: ignore[misc]
    assert torch.equal(w.detach(), torch.ones(2)) and optimizer.counts["target_queries"] == 2


def test_bad_input() -> None:
    """A wrong setting would show as an odd result, not as an error."""
    w = nn.Parameter(torch.ones(2))
    base = ArmijoDescent([w])
    for options, message in (
        ({"eta": 0.0}, "eta above 0"),
        ({"eta": float("nan")}, "eta above 0"),
        ({"inner_steps": 0}, "inner_steps of at least 1"),
        ({"grad_tol": -1.0}, "grad_tol"),
        ({"eta_schedule": "cosine"}, "constant, sqrt, exponential, line_search"),
        ({"eta_schedule": "exponential"}, "needs total_steps"),
        ({"total_steps": 5}, "needs total_steps"),
        ({"reduction": "none"}, "mean, sum"),
    ):
        with pytest.raises(InvalidInput, match=message):
            TargetSurrogate(base, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="wraps an optimizer"):
        TargetSurrogate([w])  # type: ignore[arg-type]
    optimizer = TargetSurrogate(base)
    with pytest.raises(InvalidInput, match=r"step\(forward, loss\)"):
        optimizer.step(lambda: w)
    with pytest.raises(InvalidInput, match="without a graph"):
        optimizer.step(lambda: torch.ones(2), lambda z: z.sum())
    with pytest.raises(InvalidInput, match="real outputs"):
        optimizer.step(lambda: w * 1j, lambda z: z.abs().sum())
    with pytest.raises(InvalidInput, match=r"gradient of shape \(2,\)"):
        optimizer.step(lambda: w * 1.0, lambda z: (1.0, torch.ones(3)))
