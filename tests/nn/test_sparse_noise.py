"""Per-sample noise: its values and updates, and that plain gradient descent recovers sparse errors exactly."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from assay.errors import InvalidInput
from assay.nn.sparse_noise import SparseNoise, implicit_penalty

N, RANK, WRONG = 60, 4, 8


def _problem(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return J (N, 40) of rank 4 with singular values in [0.8, 1], a theta in its row space, and sparse errors."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, RANK, generator=generator, dtype=torch.float64)).Q for n in (N, 40))
    J = left @ torch.linspace(1.0, 0.8, RANK, dtype=torch.float64).diag() @ right.T
    theta = scale * right @ torch.randn(RANK, generator=generator, dtype=torch.float64)
    errors = torch.zeros(N, dtype=torch.float64)
    chosen = torch.randperm(N, generator=generator)[:WRONG]
    errors[chosen] = torch.tensor([2.0, -2.0], dtype=torch.float64).repeat(WRONG // 2)
    return J, theta, errors


def _dual_norm(J: Tensor, theta: Tensor, errors: Tensor, penalty: float) -> float:
    """Return the least max |g_i| off the errors with theta = penalty J^T g and g = sign(s) on them.

    Below 1 (theta, s) is the solution of min 1/2 |theta|^2 + penalty |s|_1 such that J theta + s = y: a certificate by
    duality, found by linear programming.
    """
    on, off = errors != 0, errors == 0
    wanted = theta / penalty - J[on].T @ errors[on].sign()
    free = int(off.sum())
    bounds = torch.cat([torch.eye(free), -torch.eye(free)]).double()
    found = linprog(
        [0.0] * free + [1.0],
        A_ub=torch.cat([bounds, -torch.ones(2 * free, 1)], dim=1).numpy(),
        b_ub=[0.0] * (2 * free),
        A_eq=torch.cat([J[off].T, torch.zeros(J.shape[1], 1)], dim=1).numpy(),
        b_eq=wanted.numpy(),
        bounds=[(None, None)] * free + [(0, None)],
    )
    assert found.status == 0, found.message
    return float(found.fun)


def _descend(J: Tensor, y: Tensor, ratio: float, steps: int, lr: float = 0.05) -> tuple[Tensor, Tensor]:
    """Train a linear model and its noise with torch's SGD on 1/2 |J theta + s - y|^2."""
    theta = torch.zeros(J.shape[1], dtype=torch.float64, requires_grad=True)
    noise = SparseNoise(N, init_std=1e-8, generator=torch.Generator().manual_seed(1)).double()
    optimizer = torch.optim.SGD([{"params": [theta]}, *noise.param_groups(lr=ratio * lr)], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (J @ theta + noise().squeeze(1) - y).square().sum()).backward()
        optimizer.step()
    return theta.detach(), noise().detach().squeeze(1)


def test_gradient_descent_recovers_sparse_errors_exactly() -> None:
    """The implicit l1 penalty would be missing: where the convex problem is solved by the truth, descent ends there."""
    J, theta, errors = _problem()
    assert _dual_norm(J, theta, errors, implicit_penalty(1e-8, 0.5)) < 1
    found, s = _descend(J, J @ theta + errors, ratio=0.5, steps=1000)
    least_squares = torch.linalg.pinv(J) @ (J @ theta + errors)
    assert (least_squares - theta).norm() > 0.2 * theta.norm()
    assert (found - theta).norm() < 1e-6 * theta.norm()
    assert torch.allclose(s, errors, atol=1e-6)


def test_too_weak_a_penalty_recovers_nothing() -> None:
    """Recovery would be an accident: a truth too large for the penalty is missed by convex problem and descent."""
    J, theta, errors = _problem(scale=30.0)
    assert _dual_norm(J, theta, errors, implicit_penalty(1e-8, 0.5)) > 1
    found, _ = _descend(J, J @ theta + errors, ratio=0.5, steps=1500, lr=0.01)
    # Not for want of steps: without noise variables the error would have shrunk to (1 - 0.01 * 0.8^2)^1500 = 7e-5.
    assert (found - theta).norm() > 0.02 * theta.norm()


def test_rows_of_a_batch_are_rows_of_the_table() -> None:
    """A sample would get another sample's noise."""
    noise = SparseNoise(7, 3, init_std=1.0)
    index = torch.tensor([5, 0, 5])
    expected = torch.stack([noise.u[i] ** 2 - noise.v[i] ** 2 for i in (5, 0, 5)])
    assert torch.equal(noise(index), expected)
    assert torch.equal(noise()[index], expected)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_step_moves_the_batchs_rows_only(sparse: bool) -> None:
    """Samples outside the batch would move, or a sample that comes twice would move once."""
    noise = SparseNoise(6, 2, init_std=1.0, sparse=sparse)
    before = {name: p.detach().clone() for name, p in noise.named_parameters()}
    optimizer = torch.optim.SGD(noise.param_groups(lr=0.1), momentum=0.9, weight_decay=0.1)
    noise(torch.tensor([4, 1, 4])).sum().backward()
    optimizer.step()
    for name, sign in (("u", -1.0), ("v", 1.0)):  # d s / d u = 2 u, d s / d v = -2 v
        factor = torch.tensor([1.0, 1 + 0.2 * sign, 1.0, 1.0, 1 + 0.4 * sign, 1.0])[:, None]
        assert torch.allclose(getattr(noise, name), before[name] * factor, atol=1e-6)


def test_nothing_is_drawn_from_the_global_generator() -> None:
    """Two runs would differ, or the noise would shift the user's own draws."""
    state = torch.get_rng_state()
    first, second = (SparseNoise(5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.u, second.u) and not torch.equal(first.u, first.v)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: SparseNoise(0), "at least 1 sample"),
        (lambda: SparseNoise(3, init_std=-1.0), "init_std"),
        (lambda: SparseNoise(3)(torch.tensor([1.0])), "integers"),
        (lambda: SparseNoise(3)(torch.tensor([[1]])), "shape"),
        (lambda: SparseNoise(3)(torch.tensor([3])), "0..2 for 3 training samples"),
        (lambda: SparseNoise(3)(torch.tensor([-1])), "0..2 for 3 training samples"),
        (lambda: SparseNoise(3).half()(torch.tensor([1])), "float32"),
        (lambda: implicit_penalty(0.0, 1.0), "init_std"),
    ],
)
def test_bad_input_is_one_clear_error(call, said) -> None:
    """A wrong index would train another sample's noise, silently."""
    with pytest.raises(InvalidInput, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
