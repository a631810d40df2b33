"""Five full-batch problems in float64, with the approximate Hessians that the paper studies.

logsumexp    f = mu log sum_i exp((<a_i, x> - b_i) / mu), A (m, d), shifted so that the minimum is at 0; mu = 1.
             Gauss-Newton here is the weighted A^T diag(pi) A / mu, which lacks -q q^T / mu, q = A^T pi;
             "logsumexp-in-metric" is the same in z, x = L^-T z, A^T A = L L^T: the metric A^T A of x is the identity of z
chebyshev    f = ||u||^p / p with u_1 = (1 - x_1) / 2, u_i = x_i - (2 x_{i-1}^2 - 1): a long curved valley; p = 2, or 4
             in "chebyshev-4"
logistic     breast cancer, standardised, 30 features and a bias, mean logistic loss + 1e-4 ||w||^2 / 2
mlp          digits, 64 - 8 - 10 with tanh, cross-entropy + 1e-3 ||w||^2 / 2: not convex
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.data.tabular import breast_cancer, digits
from assay.errors import InvalidInput
from assay.models.mlp import MLP
from assay.optim.curvature import Curvature, LowRank, empirical_fisher, gauss_newton
from assay.optim.gradient_normalized_newton import GradientNormalizedNewton
from assay.streams import Streams

__all__ = ["PROBLEMS", "Problem", "build"]


@dataclass(frozen=True)
class Problem:
    """An objective at its start.

    Args:
        params: Leaves in float64.
        loss: The objective at their present values.
        curvatures: Approximations by name, as `GradientNormalizedNewton` takes them.
        costs: What one such matrix costs, in gradients of the objective; 0 if not named.
        metric: B, or None.
        minimum: f*; None where it has to be found.
    """

    params: list[Tensor]
    loss: Callable[[], Tensor]
    curvatures: dict[str, str | Curvature]
    costs: dict[str, int] = field(default_factory=dict)
    metric: Tensor | None = None
    minimum: float | None = None


def logsumexp(streams: Streams, size: int, in_metric: bool = False) -> Problem:
    """Return the LogSumExp problem with d = `size` and 3 d terms, from x = (1, ..., 1), in x or in z."""
    generator = streams.torch("data")
    A = torch.rand(3 * size, size, generator=generator, dtype=torch.float64) * 2 - 1
    b = torch.rand(3 * size, generator=generator, dtype=torch.float64) * 2 - 1
    A = A - torch.softmax(-b, 0) @ A
    x = torch.ones(size, dtype=torch.float64)
    if in_metric:
        root = torch.linalg.cholesky(A.T @ A)
        A, x = torch.linalg.solve_triangular(root, A.T, upper=False).T, root.T @ x
    x.requires_grad_()

    def weighted(params: Sequence[Tensor]) -> LowRank:
        return LowRank(torch.softmax(A @ params[0].detach() - b, 0).sqrt()[:, None] * A)

    return Problem(
        [x],
        lambda: torch.logsumexp(A @ x - b, 0),
        {"exact": "hessian", "gauss-newton": weighted, "zero": "zero"},
        {"exact": size, "gauss-newton": 1},
        metric=A.T @ A,
        minimum=torch.logsumexp(-b, 0).item(),
    )


def chebyshev(streams: Streams, size: int, power: float = 2.0) -> Problem:
    """Return the system in d = `size` unknowns; seeds move the start (-1, 1, ..., 1) by a tenth."""
    x = torch.ones(size, dtype=torch.float64)
    x[0] = -1.0
    x = (x + 0.1 * torch.randn(size, generator=streams.torch("init"), dtype=torch.float64)).requires_grad_()

    def residuals() -> Tensor:
        return torch.cat([(1 - x[:1]) / 2, x[1:] - (2 * x[:-1].square() - 1)])

    def objective(u: Tensor) -> Tensor:
        return u.square().sum() ** (power / 2) / power

    return Problem(
        [x],
        lambda: objective(residuals()),
        {"exact": "hessian", "gauss-newton": gauss_newton(residuals, objective), "zero": "zero"},
        {"exact": size, "gauss-newton": size},
        minimum=0.0,
    )


def logistic(streams: Streams, size: int) -> Problem:
    """Return the regression on `size` patients, from w = 0."""
    split = breast_cancer(train=size, validation=50, test=50, generator=streams.torch("data")).train
    x = torch.cat([split.inputs, torch.ones(size, 1)], 1).double()
    return _regression(x, 2.0 * split.targets.double() - 1, decay=1e-4)


def sampled(streams: Streams, size: int) -> Problem:
    """Return the regression on `size` features whose scales span two decades, from w = 0."""
    generator = streams.torch("data")
    x = torch.randn(500, size, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, size).double()
    w = torch.randn(size, generator=generator, dtype=torch.float64)
    drawn = torch.rand(500, generator=generator, dtype=torch.float64) < torch.sigmoid(x @ w)
    return _regression(x, 2.0 * drawn.double() - 1, decay=0.0)


def _regression(x: Tensor, signs: Tensor, decay: float) -> Problem:
    """Return logistic regression; its minimum is found by Newton's method."""
    w = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)

    def losses() -> Tensor:
        return F.softplus(-signs * (x @ w))

    def loss() -> Tensor:
        return losses().mean() + decay / 2 * w.square().sum()

    def hessian(params: Sequence[Tensor]) -> Tensor:
        s = torch.sigmoid(signs * (x @ params[0].detach()))
        return x.T @ ((s * (1 - s))[:, None] * x) / len(x) + decay * torch.eye(len(w), dtype=torch.float64)

    fisher = empirical_fisher(losses)

    def damped(params: Sequence[Tensor]) -> Tensor:
        matrix = fisher(params)
        assert isinstance(matrix, LowRank)
        return matrix.dense() + decay * torch.eye(len(w), dtype=torch.float64)

    optimizer = GradientNormalizedNewton([w], hessian, tol=1e-11)
    for _ in range(40):
        optimizer.step(loss)
    minimum = loss().item()
    with torch.no_grad():
        w.zero_()
    curvatures: dict[str, str | Curvature] = {"exact": hessian, "fisher": damped, "zero": "zero"}
    return Problem([w], loss, curvatures, {"exact": len(w), "fisher": 1}, minimum=minimum)


def mlp(streams: Streams, size: int) -> Problem:
    """Return the network on `size` images; what is above 0 counts as the gap, since no minimum is known."""
    dataset = digits(train=size, validation=100, test=100, generator=streams.torch("data"))
    net = MLP(dataset.input_shape, dataset.outputs, 8, 1, activation="tanh", generator=streams.torch("init")).double()
    x, y, decay = dataset.train.inputs.double(), dataset.train.targets, 1e-3
    params: list[Tensor] = list(net.parameters())

    def loss() -> Tensor:
        return F.cross_entropy(net(x), y) + decay / 2 * sum((p.square().sum() for p in params), torch.zeros(()))

    matrix = gauss_newton(lambda: net(x), lambda z: F.cross_entropy(z, y))

    def damped(params: Sequence[Tensor]) -> Tensor:
        H = matrix(params)
        assert isinstance(H, Tensor)
        return H + decay * torch.eye(len(H), dtype=torch.float64)

    # one backward pass per class would do, as the samples' outputs depend on nothing else
    return Problem(params, loss, {"gauss-newton": damped, "zero": "zero"}, {"gauss-newton": dataset.outputs}, minimum=0)


_BUILD: dict[str, Callable[[Streams, int], Problem]] = {
    "logsumexp": logsumexp,
    "logsumexp-in-metric": partial(logsumexp, in_metric=True),
    "chebyshev": chebyshev,
    "chebyshev-4": partial(chebyshev, power=4.0),
    "logistic": logistic,
    "sampled": sampled,
    "mlp": mlp,
}
PROBLEMS = tuple(_BUILD)


def build(streams: Streams, name: str, size: int) -> Problem:
    """Return a problem by name.

    Raises:
        InvalidInput: If there is none of that name.
    """
    if name not in _BUILD:
        raise InvalidInput(f"problem must be one of {', '.join(PROBLEMS)}; got {name!r}")
    return _BUILD[name](streams, size)
