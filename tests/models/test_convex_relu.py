"""The convex network against SLSQP, a dual certificate, scikit-learn's Lasso, closed forms and slow proximal steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import Lasso
from torch import Tensor

from assay.errors import InvalidInput
from assay.models._convex_admm import Normal, solve_admm
from assay.models._convex_losses import LOSSES
from assay.models._convex_program import ConvexProgram
from assay.models._convex_robust import RobustFit, project_on_cones, robust_hinge_proximal
from assay.models.convex_relu import ConvexReLU
from assay.models.relu_patterns import activation_patterns


def toy(n: int = 6, seed: int = 0, labels: bool = False) -> tuple[Tensor, Tensor]:
    """Points on a line with a column of ones, and the targets of two neurons or their signs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    y = (x - 0.3).relu() - (-x).relu() + 0.1 * torch.randn(n, generator=generator, dtype=torch.float64)
    return torch.stack([x, torch.ones_like(x)], dim=1), y.sign() if labels else y


def program(X: Tensor, y: Tensor, patterns: Tensor, loss: str, beta: float, radius: Tensor) -> ConvexProgram:
    """The program with the loss of that name."""
    return ConvexProgram(X, y, patterns.to(X), LOSSES[loss], beta, radius)


def dense_maps(X: Tensor, D: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F (n, 2Pd), G (2Pn, 2Pd) and H (nd, 2Pd) as matrices, built row by row from the definitions."""
    (n, d), P = X.shape, len(D)
    F, G, H = np.zeros((n, 2, P, d)), np.zeros((2, P, n, 2, P, d)), np.zeros((n, d, 2, P, d))
    for k in range(n):
        for i in range(P):
            on = float(D[i, k])
            for side, sign in ((0, 1.0), (1, -1.0)):
                F[k, side, i] = sign * on * X[k].numpy()
                G[side, i, k, side, i] = (2 * on - 1) * X[k].numpy()
                H[k, :, side, i] = sign * on * np.eye(d)
    size = 2 * P * d
    return F.reshape(n, size), G.reshape(-1, size), H.reshape(-1, size)


def slsqp(X: Tensor, y: Tensor, D: Tensor, beta: float, radius: Tensor | None = None) -> float:
    """The optimum of (C) with squared loss, or of the robust hinge, by SLSQP with slack variables."""
    F, G, H = dense_maps(X, D)
    (n, d), size, y_ = X.shape, F.shape[1], y.numpy()
    delta = 1e-13

    def norms(u: np.ndarray) -> np.ndarray:
        return np.sqrt((u.reshape(-1, d) ** 2).sum(axis=1) + delta)

    def penalty_gradient(u: np.ndarray) -> np.ndarray:
        return beta * (u.reshape(-1, d) / norms(u)[:, None]).ravel()

    generator = np.random.default_rng(0)
    start = 0.1 * generator.standard_normal(size)
    if radius is None:
        A, objective = G, lambda u: 0.5 * ((F @ u - y_) ** 2).sum() + beta * norms(u).sum()
        jacobian = lambda u: F.T @ (F @ u - y_) + penalty_gradient(u)  # noqa: E731
    else:
        e, I, O = radius.numpy(), np.eye, np.zeros  # noqa: E741
        sums = np.kron(np.eye(size // d), e[None])  # sum_j e_j a_ij
        rows = [
            [G, -np.repeat(sums, n, axis=0), O((len(G), n * d)), O((len(G), n))],
            *[[s * I(size), I(size), O((size, n * d)), O((size, n))] for s in (1, -1)],
            *[[s * H, O((n * d, size)), I(n * d), O((n * d, n))] for s in (1, -1)],
            [y_[:, None] * F, O((n, size)), -np.kron(I(n), e[None]), I(n)],
            [O((n, 2 * size + n * d)), I(n)],
        ]
        A = np.concatenate([np.concatenate(row, axis=1) for row in rows])
        lower = np.zeros(len(A))
        lower[-2 * n : -n] = 1
        start = np.concatenate([start, np.abs(start), np.ones(n * d), 2 * np.ones(n)])
        objective = lambda z: z[-n:].sum() + beta * norms(z[:size]).sum()  # noqa: E731
        jacobian = lambda z: np.concatenate([penalty_gradient(z[:size]), np.zeros(len(z) - size - n), np.ones(n)])  # noqa: E731
    bound = np.zeros(len(A)) if radius is None else lower
    constraint = {"type": "ineq", "fun": lambda z: A @ z - bound, "jac": lambda z: A}
    found = minimize(
        objective,
        start,
        jac=jacobian,
        constraints=[constraint],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-11},
    )
    return float(found.fun)


def test_optimum_is_slsqps() -> None:
    """ADMM would end above the program's optimum, or below it by ignoring constraints."""
    X, y = toy(5)
    patterns = activation_patterns(X, exhaustive=True)[::2]
    model = ConvexReLU(beta=0.1, rho=0.3, iters=1500).fit(X, y, patterns)
    assert model.objective_convex() == pytest.approx(slsqp(X, y, patterns, 0.1), abs=2e-5)
    assert model.constraint_violation() < 1e-5


def test_robust_optimum_is_slsqps() -> None:
    """The robust hinge or its cones would be those of another program."""
    X, y = toy(4, seed=3, labels=True)
    patterns, radius = activation_patterns(X, exhaustive=True)[::3], torch.tensor([0.1, 0.0], dtype=torch.float64)
    model = ConvexReLU(beta=0.2, rho=0.5, iters=400, loss="hinge", eps_adv=radius).fit(X, y, patterns)
    assert model.objective_convex() == pytest.approx(slsqp(X, y, patterns, 0.2, radius), abs=1e-3)
    assert model.constraint_violation() < 1e-3


def test_network_is_globally_optimal() -> None:
    """A dual bound, by brute force over all neurons, would lie below the network's objective: some network is better."""
    X, y = toy(8, seed=1)
    beta = 0.1
    model = ConvexReLU(beta=beta, rho=0.3, iters=1500).fit(X, y, activation_patterns(X, exhaustive=True))
    angles = torch.linspace(0, 2 * math.pi, 200_001, dtype=torch.float64)
    neurons = (X @ torch.stack([angles.cos(), angles.sin()])).relu()
    residual = y - model.predict(X)
    price = residual * min(1.0, beta / (residual @ neurons).abs().max().item())
    bound = (y @ price - price @ price / 2).item()  # weak duality: no network of any width is below
    assert bound <= model.objective_nonconvex() + 1e-9
    assert model.objective_nonconvex() == pytest.approx(bound, abs=1e-4)
    assert model.objective_nonconvex() == pytest.approx(model.objective_convex(), abs=1e-5)


@pytest.mark.parametrize("solver", ["admm", "admm_rbcd"])
@pytest.mark.parametrize(("x", "y"), [(2.0, 3.0), (-2.0, 3.0), (1.5, -1.0), (0.5, 0.1)])
def test_one_sample_is_a_soft_threshold(solver: str, x: float, y: float) -> None:
    """The solution would not be that of min 1/2 (x v - y)^2 + beta |v|."""
    X, beta = torch.tensor([[x]], dtype=torch.float64), 0.2
    model = ConvexReLU(4, beta=beta, rho=0.5, iters=150, solver=solver).fit(X, torch.tensor([y]))
    expected = math.copysign(max(abs(x * y) - beta, 0.0) / abs(x), y)
    assert model.predict(X).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("solver", ["admm", "fista_scp"])
def test_large_decay_gives_zero(solver: str) -> None:
    """Blocks would survive a decay above every correlation, or an empty network could not be built."""
    X, y = toy()
    model = ConvexReLU(20, beta=1e3, solver=solver, rho=10.0, iters=300).fit(X, y)
    assert model.predict(X).abs().max() == 0 and model.to_module()(X).abs().max() == 0
    assert model.objective_convex() == pytest.approx(y.square().sum().item() / 2)


def test_more_patterns_never_hurt() -> None:
    """The optimum over a larger set of patterns would be higher."""
    X, y = toy(8, seed=2)
    patterns = activation_patterns(X, exhaustive=True)
    values = [
        ConvexReLU(beta=0.1, rho=0.3, iters=300).fit(X, y, patterns[:count]).objective_convex() for count in (3, 6, 16)
    ]
    assert values[0] + 1e-4 >= values[1] and values[1] + 1e-4 >= values[2] and values[0] > values[2] + 1e-3


@pytest.mark.parametrize("loss", ["squared", "bce"])
def test_block_descent_finds_the_same(loss: str) -> None:
    """The two first steps would minimise different functions."""
    X, y = toy(7, labels=loss == "bce")
    patterns = activation_patterns(X, exhaustive=True)[:4]
    values = [
        ConvexReLU(beta=0.1, rho=0.3, iters=120, loss=loss, solver=s).fit(X, y, patterns).objective_convex()
        for s in ("admm", "admm_rbcd")
    ]
    assert values[1] == pytest.approx(values[0], abs=2e-3)


def test_hinge_optimum_is_slsqps() -> None:
    """The proximal copy of the predictions would end elsewhere, or a radius of 0 not be the plain program."""
    X, y = toy(5, seed=4, labels=True)
    patterns, none = activation_patterns(X, exhaustive=True)[::3], torch.zeros(2, dtype=torch.float64)
    model = ConvexReLU(beta=0.2, rho=0.5, iters=1500, loss="hinge", eps_adv=none).fit(X, y, patterns)
    assert model.objective_convex() == pytest.approx(slsqp(X, y, patterns, 0.2, none), abs=2e-4)


def test_bound_holds_over_the_box() -> None:
    """A perturbed data point would be worse than the robust objective says."""
    X, y = toy(10, labels=True)
    beta, radius = 0.1, 0.1
    eps = torch.tensor([radius, 0.0])
    robust = ConvexReLU(30, beta=beta, rho=0.5, iters=200, loss="hinge", eps_adv=eps).fit(X, y)
    shifts = torch.linspace(-radius, radius, 41, dtype=torch.float64)
    moved = X[:, None, :] + torch.stack([shifts, torch.zeros_like(shifts)], dim=1)
    network = robust.to_module()
    worst = (1 - y[:, None] * network(moved)[..., 0]).clamp_min(0).amax(dim=1).sum()
    penalty = beta / 2 * sum(p.square().sum() for p in network.parameters())
    assert (worst + penalty).item() <= robust.objective_convex() + 20 * robust.constraint_violation() + 1e-6


def test_scp_is_sklearns_lasso() -> None:
    """The lasso would be another one, or its network not have its objective."""
    X, y = toy(12)
    model = ConvexReLU(30, beta=0.05, solver="fista_scp", iters=3000, generator=torch.Generator().manual_seed(5)).fit(
        X, y
    )
    U = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    features = (X @ (U / U.norm(dim=1, keepdim=True)).T).relu().numpy()
    lasso = Lasso(alpha=0.05 / 12, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(features, y.numpy())
    value = 0.5 * ((features @ lasso.coef_ - y.numpy()) ** 2).sum() + 0.05 * np.abs(lasso.coef_).sum()
    assert model.objective_convex() == pytest.approx(value, abs=1e-8)
    assert model.objective_nonconvex() == pytest.approx(value, abs=1e-8) and model.constraint_violation() == 0


@pytest.mark.parametrize("patterns", [3, 40])
def test_normal_equations(patterns: int) -> None:
    """The small factor, P d or n wide, would not solve the large system."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(15, 3, dtype=torch.float64, generator=generator)
    D = activation_patterns(X, patterns, generator=generator)
    normal = Normal(program(X, X[:, 0], D, "squared", 1.0, X.new_zeros(3)), 0.7)
    assert normal.dual == (len(D) * 3 > 15)
    F, G, H = (torch.from_numpy(matrix) for matrix in dense_maps(X, D))
    b = torch.randn(2, len(D), 3, dtype=torch.float64, generator=generator)
    identity = torch.eye(b.numel(), dtype=b.dtype)
    expected = torch.linalg.solve(identity + G.T @ G + 0.7 * F.T @ F, b.flatten())
    torch.testing.assert_close(normal.solve(b).flatten(), expected)
    robust = RobustFit(program(X, X[:, 0].sign(), D, "hinge", 1.0, X.new_ones(3)), 1.0, 1.0, identities=2)
    expected = torch.linalg.solve(2 * identity + G.T @ G + H.T @ H, b.flatten())
    torch.testing.assert_close(robust.minimise(b, b).flatten(), expected)


@pytest.mark.parametrize("loss", ["squared", "bce", "hinge"])
def test_proximal_steps(loss: str) -> None:
    """A loss's proximal point would not be its minimiser over a fine grid, or its gradient not autograd's."""
    z = torch.tensor([-2.0, -0.3, 0.2, 0.9, 3.0], dtype=torch.float64, requires_grad=True)
    y, rho, criterion = torch.tensor([1.0, -1, 1, 1, -1], dtype=torch.float64), 0.7, LOSSES[loss]
    grid = torch.linspace(-6, 6, 240_001, dtype=torch.float64)
    found = criterion.proximal(z.detach(), y, rho)
    for k in range(5):
        values = torch.stack([criterion.value(g[None], y[k : k + 1]) for g in grid[::4000]])
        cost = {
            "squared": (grid - y[k]) ** 2 / 2,
            "bce": (-2 * y[k] * grid).exp().log1p(),
            "hinge": (1 - y[k] * grid).clamp_min(0),
        }
        torch.testing.assert_close(values, cost[loss][::4000])
        best = grid[(cost[loss] + rho / 2 * (grid - z[k].detach()) ** 2).argmin()]
        assert found[k].item() == pytest.approx(best.item(), abs=1e-4)
    (expected,) = torch.autograd.grad(criterion.value(z, y), z)
    torch.testing.assert_close(criterion.gradient(z.detach(), y), expected)


def test_robust_proximal_steps() -> None:
    """Random feasible points would be nearer than the projection, or lower than the robust hinge's proximal point."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    radius = torch.tensor([0.3, 0.0, 0.5], dtype=torch.float64)
    a, s = draw(6, 3), draw(6, 5)
    p, t = project_on_cones(a, s, radius)
    assert bool((t >= (p.abs() @ radius)[:, None] - 1e-9).all())
    distance = (p - a).square().sum(1) + (t - s).square().sum(1)
    for scale in (1e-4, 1e-2, 1.0):
        other = p + scale * draw(500, 6, 3)
        height = torch.maximum(s, (other.abs() @ radius)[..., None])  # the best s for this a
        assert bool(((other - a).square().sum(-1) + (height - s).square().sum(-1) >= distance - 1e-9).all())
    c, X, y, rho = draw(6, 3), draw(6, 3), draw(6).sign(), 0.8

    def cost(q: Tensor) -> Tensor:
        return (1 - y * (X * q).sum(-1) + q.abs() @ radius).clamp_min(0) + rho / 2 * (q - c).square().sum(-1)

    q = robust_hinge_proximal(c, X, y, radius, rho)
    for scale in (1e-4, 1e-2, 1.0):
        assert bool((cost(q + scale * draw(500, 6, 3)) >= cost(q) - 1e-9).all())


def test_residuals_vanish_linearly() -> None:
    """ADMM would stall."""
    X, y = toy(8, seed=1)
    model = ConvexReLU(beta=0.1, rho=0.3, iters=800).fit(X, y, activation_patterns(X, exhaustive=True))
    residuals = torch.tensor(model.residuals).amax(dim=1)
    assert residuals[200] < 0.2 * residuals[10] and residuals[-1] < 0.05 * residuals[200]


@pytest.mark.parametrize("loss", ["squared", "hinge", "robust"])
def test_iterations_are_those_of_dense_matrices(loss: str) -> None:
    """Duals would take another step than dual_step, or a copy be updated at another time."""
    X, y = toy(6, labels=loss != "squared")
    D, rho, t, beta = activation_patterns(X, 4), 0.7, 1.3, 0.1
    radius = torch.tensor([0.1 if loss == "robust" else 0.0, 0.0], dtype=torch.float64)
    made = program(X, y, D, "squared" if loss == "squared" else "hinge", beta, radius)
    F, G, H = (torch.from_numpy(matrix) for matrix in dense_maps(X, D))
    fit, weight = (H if loss == "robust" else F), 1 / rho if loss == "squared" else 1.0
    u, v, lam, a, kappa = (torch.zeros(F.shape[1], dtype=F.dtype) for _ in range(5))
    s, nu = torch.zeros(len(G), dtype=F.dtype), torch.zeros(len(G), dtype=F.dtype)
    z, mu = torch.zeros(len(fit), dtype=F.dtype), torch.zeros(len(fit), dtype=F.dtype)
    identities = 2 if loss == "robust" else 1
    normal = identities * torch.eye(len(u), dtype=u.dtype) + G.T @ G + weight * fit.T @ fit
    for _ in range(15):
        pull = fit.T @ y / rho if loss == "squared" else fit.T @ (z - mu)
        u = torch.linalg.solve(normal, pull + v - lam + G.T @ (s - nu) + a - kappa)
        blocks = (u + lam).view(-1, 2)
        v = (blocks * (1 - beta / rho / blocks.norm(dim=1, keepdim=True)).clamp_min(0)).flatten()
        lam = lam + t * (u - v)
        if loss == "robust":
            z = robust_hinge_proximal((H @ u + mu).view(6, 2), X, y, radius, rho).flatten()
            a, s = project_on_cones((u + kappa).view(-1, 2), (G @ u + nu).view(-1, 6), radius)
            a, s = a.flatten(), s.flatten()
            kappa = kappa + t * (u - a)
        else:
            z = LOSSES["hinge"].proximal(F @ u + mu, y, rho)
            s = (G @ u + nu).clamp_min(0)
        mu, nu = mu + t * (fit @ u - z), nu + t * (G @ u - s)
    found = solve_admm(made, rho, 15, t)
    torch.testing.assert_close(found.u.flatten(), u, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.v.flatten(), v, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", ["bce", "hinge"])
def test_labels_of_zero_and_one_are_the_signs(loss: str) -> None:
    """The class 0 would be another target than -1."""
    X, y = toy(8, labels=True)
    first, second = (ConvexReLU(6, 0.1, loss, iters=30).fit(X, labels).predict(X) for labels in (y, (y + 1) / 2))
    assert torch.equal(first, second) and first.abs().max() > 0


def test_scp_of_logistic_loss_is_a_general_solvers() -> None:
    """FISTA's step would be too long for the logistic loss, or its optimum not be that of the sum and the penalty."""
    X, y = toy(12, labels=True)
    model = ConvexReLU(8, 1.5, "bce", "fista_scp", iters=3000, generator=torch.Generator().manual_seed(5)).fit(X, y)
    U = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    features = (X @ (U / U.norm(dim=1, keepdim=True)).T).relu().numpy()

    def objective(parts: np.ndarray) -> tuple[float, np.ndarray]:  # a is the difference of two parts above 0
        margin = 2 * y.numpy() * (features @ (parts[:8] - parts[8:]))
        slope = features.T @ (-2 * y.numpy() / (1 + np.exp(margin)))
        return float(np.log1p(np.exp(-margin)).sum() + 1.5 * parts.sum()), np.concatenate([slope, -slope]) + 1.5

    options = {"ftol": 1e-15, "gtol": 1e-10}
    best = minimize(objective, np.full(16, 0.1), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 16, options=options)
    assert model.objective_convex() == pytest.approx(float(best.fun), abs=1e-7)
    assert model.objective_nonconvex() == pytest.approx(float(best.fun), abs=1e-7)


def test_module_and_precision() -> None:
    """The module would predict something else, or be of another type than the data; a column of targets fail."""
    X, y = toy(8)
    model = ConvexReLU(10, iters=100).fit(X.float(), y[:, None].float())
    network = model.to_module()
    assert network[0].weight.dtype == model.predict(X.float()).dtype == torch.float32
    torch.testing.assert_close(network(X.float())[:, 0], model.predict(X.float()), rtol=0, atol=1e-5)
    early = ConvexReLU(10, iters=1, rho=1e-3).fit(X, y)
    assert early.predict(X).abs().max() == 0 and early.to_module(dense=True)(X).abs().max() > 0
    torch.testing.assert_close(early.predict(X, dense=True), early.to_module(dense=True)(X)[:, 0])


def test_draws_come_from_the_generator() -> None:
    """Two fits with one seed would differ, or touch the global generator."""
    X, y = toy(8)
    before = torch.get_rng_state()
    first, second, other = (
        ConvexReLU(6, iters=20, generator=torch.Generator().manual_seed(seed)).fit(X, y) for seed in (1, 1, 2)
    )
    assert torch.equal(first.predict(X), second.predict(X)) and not torch.equal(first.patterns, other.patterns)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "huber"}, "squared, bce, hinge"),
        ({"solver": "sgd"}, "admm_rbcd"),
        ({"loss": "hinge", "solver": "admm_rbcd"}, "solver='admm'"),
        ({"loss": "hinge", "solver": "fista_scp"}, "smooth loss"),
        ({"eps_adv": 0.1}, "loss='hinge'"),
        ({"eps_adv": -0.1, "loss": "hinge"}, "0 or larger"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"rho": math.nan}, "rho must be above 0"),
        ({"iters": 0}, "at least 1"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    """A setting that can't work would fail late or not at all."""
    with pytest.raises(InvalidInput, match=message):
        ConvexReLU(**arguments)


def test_bad_data() -> None:
    """Data that can't be used would fail inside a solver."""
    X, y = toy(4)
    for bad_X, bad_y, message in [
        (X[0], y, "expected X"),
        (X, y[:2], "expected X"),
        (X.int(), y, "floating-point"),
        (X / 0, y, "NaN or infinite"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            ConvexReLU().fit(bad_X, bad_y)
    with pytest.raises(InvalidInput, match="labels of two classes"):
        ConvexReLU(loss="bce").fit(X, y)
    for shape in ((3, 5), (0, 4)):
        with pytest.raises(InvalidInput, match="expected patterns"):
            ConvexReLU().fit(X, y, torch.ones(shape, dtype=torch.bool))
    with pytest.raises(InvalidInput, match="eps_adv has shape"):
        ConvexReLU(loss="hinge", eps_adv=torch.ones(3)).fit(X, y.sign())
    with pytest.raises(InvalidInput, match="call fit"):
        ConvexReLU().to_module()
