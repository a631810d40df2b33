"""Regularised Newton steps: against steps written out, official code's search, closed forms, invariants, bad input."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.optim.curvature import LowRank, empirical_fisher, gauss_newton, hessian_products
from assay.optim.gradient_normalized_newton import GradientNormalizedNewton


def _data(seed: int, m: int = 12, d: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(m, d, generator=generator, dtype=torch.float64),
        torch.randn(m, generator=generator, dtype=torch.float64),
    )


def _problem(seed: int, d: int = 4) -> tuple[nn.Parameter, Callable[[], Tensor], Tensor, Tensor]:
    A, b = _data(seed, 3 * d, d)
    w = nn.Parameter(torch.ones(d, dtype=torch.float64))
    return w, lambda: torch.logsumexp(A @ w - b, 0), A, b


def _official_counts(A: np.ndarray, b: np.ndarray, B: np.ndarray, weighted: bool, steps: int) -> list[np.ndarray]:
    """Return the iterates of the paper's algorithm 1, written out with numpy and scipy for LogSumExp."""

    def oracle(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        z = A @ x - b
        top = z.max()
        pi = np.exp(z - top)
        value, pi = top + np.log(pi.sum()), pi / pi.sum()
        q = A.T @ pi
        return value, q, A.T @ (A * pi[:, None]) - (0 if weighted else np.outer(q, q))

    x, gamma, path = np.ones(A.shape[1]), 1.0, []
    inverse = np.linalg.inv(B)
    for _ in range(steps):
        f, g, H = oracle(x)
        for _ in range(40):
            lam = np.sqrt(g @ inverse @ g) / gamma
            d = -scipy.linalg.solve(H + lam * B, g, assume_a="pos")
            new, slope, _ = oracle(x + d)
            if f - new >= slope @ inverse @ slope / (8 * lam):
                gamma *= 2
                break
            gamma /= 2
        x = x + d
        path.append(x)
    return path


@pytest.mark.parametrize("weighted", [False, True])
def test_iterates_are_those_of_the_algorithm_written_out(weighted: bool) -> None:
    """Another radius would be searched, accepted or doubled, or the metric enter at the wrong place."""
    w, loss, A, b = _problem(0)
    B = A.T @ A

    def rows(params: list[Tensor]) -> LowRank:
        return LowRank(torch.softmax(A @ params[0].detach() - b, 0).sqrt()[:, None] * A)

    optimizer = GradientNormalizedNewton([w], rows if weighted else "hessian", metric=B)  # type: ignore[arg-type]
    for expected in _official_counts(A.numpy(), b.numpy(), B.numpy(), weighted, 6):
        optimizer.step(loss)
        np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-8, atol=1e-10)


def test_minimum_is_scipys() -> None:
    """The search would stop elsewhere than at the minimum, or stall above the rounding of the gradient."""
    A, y = _data(3, 20, 4)
    signs = y.sign()
    w = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def loss() -> Tensor:
        return nn.functional.softplus(-signs * (A @ w)).mean() + 0.05 * w.square().sum()

    def numpy_loss(x: np.ndarray) -> float:
        return float(np.logaddexp(0, -signs.numpy() * (A.numpy() @ x)).mean() + 0.05 * (x @ x))

    expected = scipy.optimize.minimize(numpy_loss, np.zeros(4), tol=1e-12).x
    optimizer = GradientNormalizedNewton([w])
    for _ in range(15):
        optimizer.step(loss)
    np.testing.assert_allclose(w.detach().numpy(), expected, atol=1e-6)
    (g,) = torch.autograd.grad(loss(), w)
    assert g.norm() < 1e-13, "rounding of the loss stopped the search before the gradient vanished"
    assert optimizer.counts["solves"] < 100, "the search collapsed near the minimum"


@given(seed=st.integers(0, 10**6), gamma=st.floats(1e-3, 1e3), kind=st.sampled_from(["hessian", "zero", "fisher"]))
@settings(max_examples=15, deadline=None)
def test_step_is_shorter_than_gamma_and_the_loss_falls(seed: int, gamma: float, kind: str) -> None:
    """The radius would be none, or a step be taken that makes a convex loss rise."""
    w, loss, A, b = _problem(seed)
    curvature = empirical_fisher(lambda: A @ w - b) if kind == "fisher" else kind
    optimizer = GradientNormalizedNewton([w], curvature, gamma0=gamma)
    for _ in range(3):
        before = w.detach().clone()
        old = optimizer.step(loss)
        assert (w.detach() - before).norm() <= optimizer.gamma / 2 * (1 + 1e-9)  # doubled after it was used
        assert loss() < old


def test_zero_curvature_is_normalised_gradient_descent() -> None:
    """Without a matrix the step would not be gamma long, or not along the gradient in the metric."""
    w, loss, A, _ = _problem(1)
    B = A.T @ A
    (g,) = torch.autograd.grad(loss(), w)
    direction = torch.linalg.solve(B, g)
    start = w.detach().clone()
    optimizer = GradientNormalizedNewton([w], "zero", metric=B, gamma0=1e-3)
    optimizer.step(loss)
    expected = start - 1e-3 * direction / torch.sqrt(g @ direction)
    torch.testing.assert_close(w.detach(), expected, rtol=1e-12, atol=1e-14)


def test_infinite_radius_is_newtons_step_and_radius_doubles_on_a_quadratic() -> None:
    """A huge radius would still regularise, or a perfect model not be trusted more after each step."""
    H = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def loss() -> Tensor:
        return w @ H @ w / 2

    optimizer = GradientNormalizedNewton([w], gamma0=1e12)
    optimizer.step(loss)
    assert w.detach().abs().max() < 1e-10
    with torch.no_grad():
        w.fill_(1.0)
    optimizer, errors = GradientNormalizedNewton([w], gamma0=0.5), []
    for k in range(8):
        assert optimizer.gamma == 0.5 * 2**k
        optimizer.step(loss)
        errors.append(w.detach().norm().item())
    ratios = [b / a for a, b in itertools.pairwise(errors)]
    assert ratios == sorted(ratios, reverse=True) and ratios[-1] < 1e-2, "the error does not fall superlinearly"


def test_steps_are_affine_invariant() -> None:
    """Other units of the parameters would give other iterates, although the metric follows them."""
    w, loss, A, b = _problem(2)
    T = torch.linalg.qr(_data(5, 4, 4)[0]).Q @ torch.diag(torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=torch.float64))
    z = nn.Parameter(torch.linalg.solve(T, w.detach()))
    plain = GradientNormalizedNewton([w])
    moved = GradientNormalizedNewton([z], metric=T.T @ T)
    for _ in range(4):
        plain.step(loss)
        moved.step(lambda: torch.logsumexp(A @ T @ z - b, 0))
        torch.testing.assert_close(T @ z.detach(), w.detach(), rtol=1e-7, atol=1e-9)


def test_lr_is_the_metric_of_a_group() -> None:
    """A group's lr would not be its squared unit of length, or lr 0 not freeze it."""
    runs = []
    for way in ("groups", "metric"):
        A, b = _data(4)
        first, second = nn.Parameter(torch.ones(2).double()), nn.Parameter(torch.ones(2).double())
        if way == "groups":
            groups = [{"params": [first], "lr": 4.0}, {"params": [second], "lr": 0.25}]
            optimizer = GradientNormalizedNewton(groups, gamma0=0.3)
        else:
            B = torch.diag(torch.tensor([0.25, 0.25, 4.0, 4.0], dtype=torch.float64))
            optimizer = GradientNormalizedNewton([first, second], metric=B, gamma0=0.3)
        for _ in range(3):
            optimizer.step(lambda A=A, b=b, f=first, s=second: torch.logsumexp(A @ torch.cat([f, s]) - b, 0))
        runs.append(torch.cat([first, second]).detach())
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["rows", "products", "many-rows"])
def test_every_form_of_a_matrix_gives_the_dense_steps(form: str) -> None:
    """Woodbury's formula or the Krylov space would solve another system than Cholesky's factorisation."""
    d = 12
    R, _ = _data(7, 20 if form == "many-rows" else 5, d)
    A, b = _data(8, 30, d)
    forms = {
        "dense": lambda params: R.T @ R,
        "rows": lambda params: LowRank(R),
        "many-rows": lambda params: LowRank(R),
        "products": lambda params: (R.T @ R).mv,
    }
    ends = []
    for name in ("dense", form):
        w = nn.Parameter(torch.ones(d, dtype=torch.float64))
        optimizer = GradientNormalizedNewton([w], forms[name], metric=torch.eye(d).double() * 2)
        for _ in range(5):
            optimizer.step(lambda w=w: torch.logsumexp(A @ w - b, 0) + 0.1 * w.square().sum())
        ends.append(w.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-8)


def test_hessian_products_take_the_steps_of_the_dense_hessian() -> None:
    """The form for many parameters would differ from the exact method, in a network with several tensors."""
    x, y = _data(9, 16, 3)
    ends = []
    for products in (False, True):
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        with torch.no_grad():
            for i, p in enumerate(net.parameters()):
                p.copy_(torch.linspace(-1, 1, p.numel()).sin().view_as(p) + 0.1 * i)

        def loss(net: nn.Module = net) -> Tensor:
            return (net(x)[:, 0] - y).square().mean()

        optimizer = GradientNormalizedNewton(net.parameters(), hessian_products(loss) if products else "hessian")
        for _ in range(6):
            optimizer.step(loss)
        ends.append(torch.cat([p.detach().reshape(-1) for p in net.parameters()]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)


def test_saddle_is_left_along_negative_curvature() -> None:
    """A matrix that is not positive definite would end the step instead of shrinking the radius."""
    w = nn.Parameter(torch.tensor([0.1, 1.0], dtype=torch.float64))

    def loss() -> Tensor:
        return w[0] ** 4 / 4 - w[0] ** 2 / 2 + w[1] ** 2

    for curvature in ("hessian", hessian_products(loss)):
        with torch.no_grad():
            w.copy_(torch.tensor([0.1, 1.0]))
        optimizer = GradientNormalizedNewton([w], curvature, gamma0=100.0)
        for _ in range(25):
            optimizer.step(loss)
        torch.testing.assert_close(w.detach(), torch.tensor([1.0, 0.0]).double(), atol=1e-6, rtol=0)


def test_gauss_newton_follows_a_curved_valley_to_its_end() -> None:
    """On the paper's nonlinear system the Gauss-Newton form would stall as gradient steps do."""
    x = nn.Parameter(torch.tensor([-1.0, 1.0], dtype=torch.float64))

    def residuals() -> Tensor:
        return torch.stack([(1 - x[0]) / 2, x[1] - 2 * x[0] ** 2 + 1])

    optimizer = GradientNormalizedNewton([x], gauss_newton(residuals, lambda u: u.square().sum() / 2))
    for _ in range(60):
        optimizer.step(lambda: residuals().square().sum() / 2)
    torch.testing.assert_close(x.detach(), torch.ones(2).double(), atol=1e-8, rtol=0)


def test_nothing_moves_without_an_acceptable_trial_or_finite_numbers() -> None:
    """A NaN or a dead end would leave the parameters at a trial point, or the radius at NaN."""
    w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = GradientNormalizedNewton([w], "zero", max_trials=3)
    optimizer.step(lambda: (w if w.item() == 2.0 else w * math.nan).sum())
    assert w.item() == 2.0 and optimizer.gamma == 1 / 8 and optimizer.counts["steps"] == 0
    assert math.isnan(optimizer.step(lambda: (w * math.nan).sum()).item())
    assert math.isinf(optimizer.step(lambda: (w / 0.0).sum()).item())
    assert w.item() == 2.0 and optimizer.gamma == 1 / 8
    infinite = GradientNormalizedNewton([w], lambda params: torch.full((1, 1), math.inf))
    infinite.step(lambda: w.square().sum())
    assert w.item() == 2.0
    done = GradientNormalizedNewton([w], tol=10.0)
    done.step(lambda: w.square().sum())
    assert w.item() == 2.0 and done.counts["solves"] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
@pytest.mark.parametrize("at", [1, 3])
def test_nothing_moves_where_products_are_not_finite(bad: float, at: int) -> None:
    """LAPACK would raise on the small matrix of the Krylov space, or a space cut short pass as solved."""
    w, H = nn.Parameter(torch.ones(6, dtype=torch.float64)), torch.linspace(1, 2, 6, dtype=torch.float64)
    calls = []

    def product(v: Tensor) -> Tensor:
        calls.append(v)
        return H * v * (bad if len(calls) == at else 1)

    optimizer = GradientNormalizedNewton([w], lambda params: product)
    loss = optimizer.step(lambda: w.square().sum() / 2)
    assert loss.item() == 3 and torch.equal(w.detach(), torch.ones(6, dtype=torch.float64))
    assert len(calls) == at and optimizer.gamma == 1 and optimizer.counts["solves"] == 0


def test_the_callers_grad_mode_does_not_matter() -> None:
    """Under `torch.no_grad` the gradient would lose its graph, and the Hessian be 0 in silence."""
    ends = []
    for mode in (True, False):
        w, loss, *_ = _problem(0)
        optimizer = GradientNormalizedNewton([w], gamma0=100.0)
        with torch.set_grad_enabled(mode):
            for _ in range(3):
                optimizer.step(loss)
        ends.append(w.detach())
    assert torch.equal(ends[0], ends[1])


def test_groups_may_be_empty() -> None:
    """The radius would be looked for in the first group, which has no parameter yet."""
    ends = []
    for groups in (([],), ()):
        w, loss, *_ = _problem(0)
        optimizer = GradientNormalizedNewton([*({"params": group} for group in groups), {"params": [w]}])
        for _ in range(3):
            optimizer.step(loss)
        ends.append(w.detach())
        assert optimizer.counts["steps"] == 3
    assert torch.equal(ends[0], ends[1])
    nothing = GradientNormalizedNewton([{"params": []}], gamma0=0.5)
    assert nothing.step(lambda: torch.tensor(3.0)).item() == 3 and nothing.gamma == 0.5


def test_frozen_and_unused_parameters_stay_although_the_matrix_couples_them() -> None:
    """A parameter outside the loss would be moved by off-diagonal entries."""
    used, unused, frozen = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = GradientNormalizedNewton(
        [used, unused, frozen], lambda params: torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    )
    optimizer.step(lambda: (used * frozen).square().sum())
    assert used.item() != 1.0 and unused.item() == 1.0 and frozen.item() == 1.0


def test_state_survives_a_restart_in_float32_and_mixed_types() -> None:
    """The radius or the counts would start anew, or a half-precision parameter break the flat vector."""
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float16))

    def loss() -> Tensor:
        return (a - 2).square().sum() + (b.float() * 3 - 1).square().sum()

    optimizer = GradientNormalizedNewton([a, b], gamma0=0.3)
    optimizer.step(loss)
    again = GradientNormalizedNewton([a, b])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.gamma == optimizer.gamma == 0.6 and again.counts == optimizer.counts
    assert a.dtype == torch.float32 and b.dtype == torch.float16 and a[0] != 1 and b[0] != 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"curvature": "newton"}, "curvature must be one of"),
        ({"lr": -1.0}, "lr must be"),
        ({"lr": math.nan}, "lr must be"),
        ({"gamma0": 0.0}, "gamma0 > 0"),
        ({"max_trials": 0}, "max_trials >= 1"),
        ({"tol": -1.0}, "tol >= 0"),
        ({"metric": -torch.eye(2)}, "positive definite"),
        ({"metric": torch.eye(3)}, "there are 2 parameters"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], words: str) -> None:
    """A wrong argument would show as a wrong step much later."""
    with pytest.raises(InvalidInput, match=words):
        GradientNormalizedNewton([nn.Parameter(torch.ones(2))], **options)  # type: ignore[arg-type]


def test_bad_parameters_and_closures_are_refused() -> None:
    """Complex parameters, no closure, or a closure that calls backward() would end in an obscure error of autograd."""
    with pytest.raises(ValueError, match="empty parameter list"):
        GradientNormalizedNewton([])
    with pytest.raises(InvalidInput, match="real dense"):
        GradientNormalizedNewton([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    w = nn.Parameter(torch.ones(2))
    optimizer = GradientNormalizedNewton([w])
    with pytest.raises(InvalidInput, match="got no closure"):
        optimizer.step()

    def backward() -> Tensor:
        loss = w.square().sum()
        loss.backward()
        return loss

    with pytest.raises(InvalidInput, match="must not call backward"):
        optimizer.step(backward)
    with pytest.raises(InvalidInput, match="scalar tensor"):
        optimizer.step(lambda: 1.0)  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidInput, match="there are 2 parameters"):
        GradientNormalizedNewton([w], lambda params: torch.eye(3)).step(lambda: w.square().sum())
    table = nn.Embedding(3, 2, sparse=True)
    with pytest.raises(InvalidInput, match="dense gradients"):
        GradientNormalizedNewton(table.parameters(), "zero").step(lambda: table(torch.tensor([1])).sum())
