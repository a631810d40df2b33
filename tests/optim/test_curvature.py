"""Curvature matrices: against torch.func's Hessians and Jacobians, and the bound of the Fisher matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from assay.errors import InvalidInput
from assay.optim.curvature import LowRank, empirical_fisher, gauss_newton, hessian_products


def _network(seed: int = 0) -> tuple[nn.Module, list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    return net, list(net.parameters()), x, torch.randint(0, 3, (6,), generator=generator)


def _outputs(net: nn.Module, x: Tensor, flat: Tensor) -> Tensor:
    parts = flat.split([p.numel() for p in net.parameters()])
    tensors = {name: part.view_as(p) for (name, p), part in zip(net.named_parameters(), parts, strict=True)}
    return functional_call(net, tensors, (x,))


def _flat(params: list[Tensor]) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in params])


def test_gauss_newton_is_the_hessian_of_the_linearised_network() -> None:
    """Outputs, classes or parameters would be mixed up in J^T S J."""
    net, params, x, y = _network()
    point = _flat(params)
    J = jacrev(lambda v: _outputs(net, x, v))(point)
    base = _outputs(net, x, point)
    expected = hessian(lambda h: F.cross_entropy(base + J @ h, y))(torch.zeros_like(point))
    found = gauss_newton(lambda: net(x), lambda u: F.cross_entropy(u, y))(params)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    flat_loss = gauss_newton(lambda: net(x), lambda u: u.sum())(params)
    assert isinstance(flat_loss, Tensor) and not flat_loss.any()


def test_power_of_residuals_has_the_papers_two_terms() -> None:
    """The Gauss-Newton form of ||u||^p / p would not be r^(p-2) J^T J + (p-2) r^(p-4) (J^T u)(J^T u)^T."""
    p, x = 4.0, torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)

    def residuals() -> Tensor:
        return torch.stack([x[0] ** 2, x[0] * x[1], x[1].sin()])

    u = residuals().detach()
    a, b = x.detach()
    J = torch.stack([torch.stack([2 * a, 0 * a]), torch.stack([b, a]), torch.stack([0 * a, b.cos()])])
    r, q = u.norm(), J.T @ u
    expected = r ** (p - 2) * J.T @ J + (p - 2) * r ** (p - 4) * torch.outer(q, q)
    found = gauss_newton(residuals, lambda v: v.square().sum() ** (p / 2) / p)([x])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_fisher_is_within_the_loss_of_the_hessian_of_logistic_regression(seed: int, scale: float) -> None:
    """The paper's bound ||Hess - Fisher|| <= f for unit features would break: the matrix is another one."""
    generator = torch.Generator().manual_seed(seed)
    A = F.normalize(torch.randn(20, 4, generator=generator, dtype=torch.float64), dim=1)
    signs = torch.randint(0, 2, (20,), generator=generator).double() * 2 - 1
    w = (torch.randn(4, generator=generator, dtype=torch.float64) * scale).requires_grad_()

    def losses() -> Tensor:
        return F.softplus(-signs * (A @ w))

    fisher = empirical_fisher(losses)([w])
    assert isinstance(fisher, LowRank)
    s = torch.sigmoid(-signs * (A @ w.detach()))
    torch.testing.assert_close(fisher.dense(), A.T @ (s.square()[:, None] * A) / 20)
    exact = A.T @ ((s * (1 - s))[:, None] * A) / 20
    assert torch.linalg.matrix_norm(exact - fisher.dense(), ord=2) <= losses().mean() + 1e-12


def test_products_are_those_of_the_dense_hessian() -> None:
    """The form for many parameters would multiply with another matrix, or only once."""
    net, params, x, y = _network(1)
    expected = hessian(lambda v: F.cross_entropy(_outputs(net, x, v), y))(_flat(params))
    product = hessian_products(lambda: F.cross_entropy(net(x), y))(params)
    assert callable(product)
    found = torch.stack([product(v) for v in torch.eye(len(expected), dtype=torch.float64)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_losses_must_be_one_per_sample() -> None:
    """A mean loss would give a matrix of rank one without a word."""
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(InvalidInput, match="one loss per sample"):
        empirical_fisher(lambda: w.sum())([w])
