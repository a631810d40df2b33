"""A two-layer ReLU network trained to a global optimum: a convex program over activation patterns.

Bai, Gautam and Sojoudi (2023, arXiv:2201.01965), after Pilanci and Ergen (2020). The network (X U)_+ alpha with decay,

    min  l((X U)_+ alpha, y) + beta/2 (|U|^2 + |alpha|^2)                                                       (NC)
    min  l(sum_i D_i X (v_i - w_i), y) + beta sum_i (|v_i| + |w_i|)   s.t. (2 D_i - I) X v_i >= 0, same for w_i   (C)

has the same minimum in both forms, if all patterns D_i are there and the width suffices; with sampled patterns (C) is
an upper bound of it. A block v_i is the neuron v_i / sqrt|v_i| with output weight sqrt|v_i|, a block w_i that with
-sqrt|w_i|. Solvers: `_convex_admm` (also the robust form), `_sampled_program` (random neurons instead of patterns).

Shapes: n samples, d features, P patterns, m neurons; X (n, d), y (n,) or (n, 1). One output.
Departures: losses are sums (the robust program of the paper takes the mean: its beta times n here); solvers say theirs.
Cost: the factor takes O(min(n, P d)^3) once; an iteration O(n d P + min(n, P d)^2); memory O(n P + min(n, P d)^2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._convex_admm import solve_admm
from assay.models._convex_losses import LOSSES
from assay.models._convex_program import ConvexProgram
from assay.models._sampled_program import solve_lasso
from assay.models.relu_patterns import activation_patterns

__all__ = ["ConvexReLU"]

_SOLVERS = ("admm", "admm_rbcd", "fista_scp")


class ConvexReLU:
    """Two-layer ReLU network with weight decay, fitted by convex optimisation.

    Args:
        n_patterns: Draws u ~ N(0, I) of which the distinct patterns are kept, or random neurons with "fista_scp"; at
            least 1. With `eps_adv`, distinct patterns that can hold more than zeros, if 1000 times as many draws
            find them (see `activation_patterns`).
        beta: Weight decay of (NC), against a loss that is a sum over samples; above 0.
        loss: "squared" is half the squared error; "bce" log(1 + e^{2z}) - 2 y z for labels 0 and 1; "hinge". Both of
            the latter take labels 0 and 1 or -1 and 1, and the class is the output's sign.
        solver: "admm" with one Cholesky factor; "admm_rbcd", block coordinate descent without a factor, for smooth
            losses; "fista_scp", the lasso over fixed random neurons, for smooth losses.
        rho: ADMM's penalty; too small and it is long infeasible, too large and the loss falls slowly.
        iters: ADMM's or FISTA's iterations.
        eps_adv: Radius by which each feature may be perturbed, a number or (d,) with 0 for a column of ones; above 0
            needs "hinge" and "admm", and minimises an upper bound of the worst-case loss.
        dual_step: Step of ADMM's duals, gamma_a / rho in the paper; 1 is standard.
        generator: Decides patterns, neurons and the order of blocks; None is a fixed one.

    Attributes, once fitted: `patterns` (P, n); `residuals`, per iteration |u - v| and |G u - s| (for FISTA how far it
    moved, and 0).

    Raises:
        InvalidInput: If a setting is unknown or out of range, or the solver can't do the loss.

    Example:
        >>> X = torch.tensor([[1.0], [-1.0]])
        >>> model = ConvexReLU(beta=0.1, iters=200).fit(X, torch.tensor([1.0, 2.0]))
        >>> [round(z, 3) for z in model.predict(X).tolist()]
        [0.9, 1.9]
        >>> model.to_module()
        Sequential(
          (0): Linear(in_features=1, out_features=2, bias=False)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=1, bias=False)
        )
    """

    def __init__(
        self,
        n_patterns: int = 50,
        beta: float = 1e-3,
        loss: str = "squared",
        solver: str = "admm",
        rho: float = 0.1,
        iters: int = 500,
        eps_adv: float | Tensor = 0.0,
        dual_step: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        radius = torch.as_tensor(eps_adv, dtype=torch.float64)
        _check(loss, solver, radius)
        for name, value in (("beta", beta), ("rho", rho), ("dual_step", dual_step)):
            if not 0 < value < math.inf:
                raise InvalidInput(f"{name} must be above 0 and finite, not {value}")
        if n_patterns < 1 or iters < 1:
            raise InvalidInput(f"n_patterns and iters must be at least 1; got {n_patterns} and {iters}")
        self.n_patterns, self.beta, self.solver, self.rho, self.iters = n_patterns, beta, solver, rho, iters
        self.loss, self.radius, self.dual_step = LOSSES[loss], radius, dual_step
        self.generator = generator

    def fit(self, X: Tensor, y: Tensor, patterns: Tensor | None = None) -> ConvexReLU:
        """Solve the program in float64.

        Args:
            X: Data (n, d), with a column of ones if neurons shall have biases.
            y: Targets (n,) or (n, 1).
            patterns: Boolean (P, n) instead of sampled ones, such as all from `assay.models.activation_patterns`.

        Raises:
            InvalidInput: If shapes or labels don't fit, something is NaN or infinite, "fista_scp" gets patterns, or
                no drawn pattern withstands `eps_adv`.
        """
        data, targets = _checked_data(X, y)
        radius = self.radius.to(data.device).expand(data.shape[1]) if self.radius.ndim == 0 else self.radius
        if radius.shape != data.shape[1:]:
            raise InvalidInput(f"eps_adv has shape {tuple(radius.shape)}; expected one number or ({data.shape[1]},)")
        misfit = patterns is not None and (not patterns.numel() or patterns.shape[1:] != data.shape[:1])
        if patterns is not None and (misfit or self.solver == "fista_scp"):
            raise InvalidInput(
                f"expected patterns of shape (P, {len(data)}), P at least 1, and an ADMM solver; got "
                f"{tuple(patterns.shape)} and {self.solver!r}"
            )
        generator = self.generator or torch.Generator().manual_seed(0)
        self._dtype, targets = X.dtype, self.loss.targets(targets)
        if self.solver == "fista_scp":
            self._fit_lasso(data, targets, generator)
            return self
        if patterns is None:
            patterns = activation_patterns(data, self.n_patterns, perturbation=radius, generator=generator)
        self.patterns = patterns.bool()
        D = self.patterns.to(data)
        program = ConvexProgram(data, targets, D, self.loss, self.beta, radius.to(data.device))
        coordinate = generator if self.solver == "admm_rbcd" else None
        solution = solve_admm(program, self.rho, self.iters, self.dual_step, coordinate)
        self._objective, self._violation = program.objective(solution.v).item(), program.violation(solution.v).item()
        self.residuals, self._data = solution.residuals, (data, targets)
        self._sparse, self._dense = _neurons(solution.v), _neurons(solution.u)
        return self

    def _fit_lasso(self, X: Tensor, y: Tensor, generator: torch.Generator) -> None:
        U = torch.randn(self.n_patterns, X.shape[1], dtype=torch.float64, generator=generator).to(X.device)
        U = U / U.norm(dim=1, keepdim=True)
        features = (X @ U.T).relu()
        a, self.residuals = solve_lasso(features, y, self.loss, self.beta, self.iters)
        self._objective = (self.loss.value(features @ a, y) + self.beta * a.abs().sum()).item()
        self._violation, self.patterns, self._data = 0.0, features.T > 0, (X, y)
        used = a != 0
        size = a[used].abs().sqrt()
        self._sparse = self._dense = (U[used] * size[:, None], a[used].sign() * size)

    def to_module(self, dense: bool = False) -> nn.Sequential:
        """Return the network, with one neuron per block that isn't zero (and one that is, if all are).

        Args:
            dense: From ADMM's first copy, which satisfies constraints only in the limit and has no zeros: of use after
                a few iterations, when the sparse copy may still be all zeros.

        Raises:
            InvalidInput: Before `fit`.
        """
        U, alpha = self._network(dense)
        if not len(alpha):
            U, alpha = U.new_zeros(1, self._data[0].shape[1]), alpha.new_zeros(1)
        m, d = U.shape
        first, last = nn.Linear(d, m, bias=False), nn.Linear(m, 1, bias=False)
        first.weight, last.weight = nn.Parameter(U.to(self._dtype)), nn.Parameter(alpha.to(self._dtype)[None])
        return nn.Sequential(first, nn.ReLU(), last)

    def predict(self, X: Tensor, dense: bool = False) -> Tensor:
        """Return the network's outputs (n,), in the data's precision; for classes the sign decides.

        Args:
            X: Data (n, d).
            dense: As of `to_module`.

        Raises:
            InvalidInput: Before `fit`.
        """
        U, alpha = self._network(dense)
        return ((X.to(U) @ U.T).relu() @ alpha).to(X.dtype)

    def objective_convex(self) -> float:
        """Return (C)'s value (or the lasso's) at the solution; exact only as far as constraints are met."""
        self._network(dense=False)
        return self._objective

    def objective_nonconvex(self) -> float:
        """Return (NC)'s value of the recovered network on clean data; with decay balanced between the layers."""
        U, alpha = self._network(dense=False)
        X, y = self._data
        return (
            self.loss.value((X @ U.T).relu() @ alpha, y) + self.beta / 2 * (U.square().sum() + alpha @ alpha)
        ).item()

    def constraint_violation(self) -> float:
        """Return by how much the worst constraint of (C) is missed, in units of X v; 0 if none is."""
        self._network(dense=False)
        return self._violation

    def _network(self, dense: bool) -> tuple[Tensor, Tensor]:
        if not hasattr(self, "_sparse"):
            raise InvalidInput("nothing is fitted yet; call fit(X, y) first")
        return self._dense if dense else self._sparse


def _neurons(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return hidden weights (m, d) and output weights (m,) of the blocks that aren't zero."""
    length = u.norm(dim=-1)
    signs = torch.tensor([[1.0], [-1.0]], dtype=u.dtype, device=u.device)
    alpha, used = signs * length.sqrt(), length > 0
    return u[used] / length[used].sqrt()[:, None], alpha[used]


def _check(loss: str, solver: str, radius: Tensor) -> None:
    if loss not in LOSSES:
        raise InvalidInput(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
    if solver not in _SOLVERS:
        raise InvalidInput(f"solver must be one of {', '.join(_SOLVERS)}, not {solver!r}")
    if LOSSES[loss].curvature is None and solver != "admm":
        raise InvalidInput(f"solver {solver!r} needs a smooth loss, not {loss!r}; use solver='admm'")
    if radius.ndim > 1 or not bool(((radius >= 0) & (radius < math.inf)).all()):
        raise InvalidInput("eps_adv must be 0 or larger and finite, one number or one per feature")
    if bool((radius > 0).any()) and loss != "hinge":
        raise InvalidInput(f"eps_adv above 0 needs loss='hinge' (and solver='admm'), not {loss!r}")


def _checked_data(X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if X.ndim != 2 or X.numel() == 0 or y.shape not in ((len(X),), (len(X), 1)):
        raise InvalidInput(f"expected X (n, d) and y (n,) or (n, 1); got {tuple(X.shape)} and {tuple(y.shape)}")
    if not X.is_floating_point():
        raise InvalidInput(f"expected X of a floating-point type, not {X.dtype}; convert it with X.float()")
    X, y = X.detach().double(), y.detach().double().flatten()
    if not bool(torch.isfinite(X).all() and torch.isfinite(y).all()):
        raise InvalidInput("X or y contains NaN or infinite values; remove or fill them first")
    return X, y
