"""Newton's method with any curvature matrix, regularised by the gradient's length over one searched scalar.

Semenov, Jaggi, Doikov, "Gradient-Normalized Smoothness for Optimization with Approximate Hessians"
(arXiv:2506.13710), algorithm 1 with the adaptive search of its appendix. For an objective f with gradient g and a
symmetric matrix H near its Hessian (Gauss-Newton, Fisher, a part of it, even 0), in the norm of a metric B:

    d = -(H + lam B)^-1 g(x),   lam = ||g(x)||_* / gamma              so that ||d|| <= gamma if H >= 0
    accept x' = x + d if  f(x) - f(x') >= ||g(x')||_*^2 / (8 lam),    then gamma <- 2 gamma; else gamma <- gamma / 2

gamma follows the gradient-normalised smoothness, the radius within which g + H h is right relative to ||g||: errors of
Taylor's formula and of H enter alike, so no constant of the problem has to be known. H = 0 is normalised gradient
descent, gamma -> infinity the Newton step.

Shapes: x, g and d (P,), all parameters one after the other; B and H (P, P). ||h||^2 = h^T B h, ||g||_*^2 = g^T B^-1 g.
Groups: `lr` is the squared unit of length of a group, B = D^-1/2 B0 D^-1/2 with D = diag(lr); 0 freezes, 1 is the
paper's. Schedulers act on it, but gamma's search soon makes up for a common factor.

Departures. A matrix that is not positive definite counts as a rejected trial (official code applies the last trial's
step again). If no trial is accepted the point stays, and the next step searches on from there. Where f - f' is below
the rounding of f, the test is <g', -d> >= ||g'||_*^2 / (8 lam), which implies the other for convex f; without it the
search collapses near a minimum. Where official code adds 1e-8 to gamma, gamma is kept between bounds.
Full batches: theory has no noise, and a closure must give the same for the same parameters.
Cost per step: one evaluation of loss and gradient, one of H, and per trial (about two) one solve and one evaluation.
A dense H takes P^2 memory and P^3 / 3 operations per solve: up to a few thousand parameters, float64 recommended.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim._metric_space import MetricSpace, checked_matrix, metric_root
from assay.optim._shifted_systems import DenseSystem, KrylovSystem, RowsSystem, ShiftedSystem
from assay.optim.curvature import Curvature, LowRank, Matrix, jacobian

__all__ = ["GradientNormalizedNewton"]

NAMES = ("hessian", "zero")
BOUNDS = (1e-30, 1e30)  # of gamma
COUNTS = ("steps", "evaluations", "curvatures", "solves")


class GradientNormalizedNewton(torch.optim.Optimizer):
    """Gradient-regularised Newton steps with adaptive gradient-normalised smoothness.

    Args:
        params: Parameters or groups; groups may differ in `lr`.
        curvature: "hessian" (exact, dense), "zero" (normalised gradient descent), or a function of the list of
            parameters, such as `gauss_newton(forward, loss)`, `empirical_fisher(losses)` or
            `hessian_products(objective)`.
        lr: Squared unit of length, at least 0; see the head of the module.
        metric: B (P, P), symmetric positive definite; None is the identity.
        gamma0: First radius, above 0.
        max_trials: Trials before a step is given up.
        tol: No step is taken where ||g||_* is at most this.

    Attributes:
        gamma: The present radius.
        counts: What was spent: "steps" accepted, "evaluations" of loss and gradient, "curvatures" and "solves".

    Raises:
        InvalidInput: If an argument is out of range, a parameter is complex or sparse, or the metric does not fit; from
            `step`, if there is no closure, or its loss cannot be differentiated.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))
        >>> optimizer = GradientNormalizedNewton([w])
        >>> for _ in range(12):
        ...     loss = optimizer.step(lambda: w[0] ** 4 / 4 + w[0] * w[1] + w[1] ** 2)
        >>> round(loss.item(), 6), round(w[0].item() ** 2, 6)  # minima at w0^2 = 1/2, w1 = -w0 / 2
        (-0.0625, 0.5)
    """

    needs_closure = True

    def __init__(
        self,
        params: Any,
        curvature: str | Curvature = "hessian",
        lr: float = 1.0,
        metric: Tensor | None = None,
        gamma0: float = 1.0,
        max_trials: int = 40,
        tol: float = 0.0,
    ) -> None:
        if not callable(curvature) and curvature not in NAMES:
            raise InvalidInput(
                f"curvature must be one of {', '.join(NAMES)} or a function of the parameters such as "
                f"assay.optim.gauss_newton(forward, loss); got {curvature!r}"
            )
        if not (BOUNDS[0] <= gamma0 <= BOUNDS[1] and max_trials >= 1 and 0 <= tol < math.inf):
            raise InvalidInput(
                f"expected gamma0 > 0, max_trials >= 1 and tol >= 0, all finite; got {gamma0}, {max_trials} and {tol}"
            )
        self.curvature, self.gamma0, self.max_trials, self.tol = curvature, gamma0, max_trials, tol
        self.metric = metric
        super().__init__(params, {"lr": lr})
        if metric is not None:
            metric_root(metric, sum(p.numel() for p in self._params()))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its parameters must be real and dense, its `lr` finite and at least 0."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        bad = next((p for p in group["params"] if p.is_complex() or p.layout is not torch.strided), None)
        if bad is None and 0 <= group["lr"] < math.inf:
            return
        self.param_groups.pop()
        if bad is None:
            raise InvalidInput(f"lr must be a finite number of at least 0; got {group['lr']}")
        raise InvalidInput(
            f"GradientNormalizedNewton needs real dense parameters, got {bad.dtype} in layout {bad.layout}; optimise "
            "torch.view_as_real of complex ones"
        )

    @property
    def gamma(self) -> float:
        """The radius that the next step tries first."""
        return float(self._memory()["gamma"])

    @property
    def counts(self) -> dict[str, int]:
        """What was spent so far."""
        return {name: self._memory()[name] for name in COUNTS}

    def step(self, closure: Callable[[], Tensor] | None = None) -> Any:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Computes and returns the loss of all data; it does not call `backward()`, and `grad` is not used.

        Returns:
            The loss before the step. If loss, gradient or curvature is not finite there, nothing moves.

        Raises:
            InvalidInput: If there is no closure, or its loss cannot be differentiated (as often as `curvature` asks).
        """
        if closure is None:
            raise InvalidInput(
                "GradientNormalizedNewton evaluates the loss at several points and got no closure; call step(closure) "
                "with a function that returns the loss, without backward()"
            )
        params = self._params()
        if not params:
            return torch.as_tensor(closure()).detach()
        loss, gradients = self._evaluate(closure, params, create_graph=self.curvature == "hessian")
        scale = torch.cat([p.new_full((p.numel(),), 0.0 if g is None else s) for p, g, s in self._scaled(gradients)])
        with torch.enable_grad():  # the Hessian is its derivative, whatever the caller's mode
            flat = _flat(params, gradients)
        space = MetricSpace(scale.to(flat.dtype), self.metric)
        g = space.covector(flat.detach())
        norm = float(g.norm())
        if math.isfinite(loss.item()) and self.tol < norm < math.inf:
            system = self._system(space, g, flat, params)
            if system is not None:
                with torch.no_grad():
                    self._search(closure, params, space, system, g, loss.item())
        return loss.detach()

    def _search(
        self,
        closure: Callable[[], Tensor],
        params: list[Tensor],
        space: MetricSpace,
        system: ShiftedSystem,
        g: Tensor,
        loss: float,
    ) -> None:
        """Try radii until a step is accepted; without one the parameters are as they were, bit for bit."""
        memory, start = self._memory(), [p.detach().clone() for p in params]
        norm = float(g.norm())
        for _ in range(self.max_trials):
            lam = norm / memory["gamma"]
            d = system.solve(lam)
            memory["solves"] += 1
            if d is not None and bool(d.isfinite().all()):
                _move(params, start, space.vector(d))
                trial, gradients = self._evaluate(closure, params)
                new = space.covector(_flat(params, gradients))
                if _accepted(loss, trial.item(), g, new, d, lam):
                    memory["gamma"] = min(2 * memory["gamma"], BOUNDS[1])
                    memory["steps"] += 1
                    return
            memory["gamma"] = max(memory["gamma"] / 2, BOUNDS[0])
        for p, old in zip(params, start, strict=True):
            p.copy_(old)

    def _evaluate(
        self, closure: Callable[[], Tensor], params: list[Tensor], *, create_graph: bool = False
    ) -> tuple[Tensor, list[Tensor | None]]:
        self._memory()["evaluations"] += 1
        with torch.enable_grad():
            loss = closure()
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise InvalidInput(
                    "the closure must return the loss as a scalar tensor with its graph; got "
                    f"{'one without a graph' if isinstance(loss, Tensor) else type(loss).__name__}"
                )
            try:
                found = torch.autograd.grad(loss, params, create_graph=create_graph, allow_unused=True)
            except RuntimeError as error:
                raise InvalidInput(
                    "the closure's loss cannot be differentiated; the closure must not call backward() itself, and "
                    f"the parameters must not be changed in place. autograd says: {error}"
                ) from error
        if any(g is not None and g.layout is not torch.strided for g in found):
            raise InvalidInput("GradientNormalizedNewton needs dense gradients; use nn.Embedding(sparse=False)")
        return loss, list(found)

    def _system(self, space: MetricSpace, g: Tensor, gradient: Tensor, params: list[Tensor]) -> ShiftedSystem | None:
        """Return the equations for d in the coordinates in which the metric is the identity; None if not finite."""
        self._memory()["curvatures"] += 1
        H: Matrix
        if callable(self.curvature):
            H = self.curvature(params)
        elif self.curvature == "zero":
            H = LowRank(g.new_zeros(1, len(g)))
        else:
            H = _hessian(gradient, params)
        if isinstance(H, LowRank):
            H = LowRank(checked_matrix(H.rows, len(g)).to(g))
            rows = space.rows(H.rows)
            if not rows.isfinite().all():
                return None
            return RowsSystem(rows, g) if len(rows) < len(g) else DenseSystem(rows.T @ rows, g)
        if isinstance(H, Tensor):
            matrix = space.rows(space.rows(checked_matrix(H, len(g), len(g)).to(g)).T)
            return DenseSystem(matrix, g) if matrix.isfinite().all() else None
        product = H
        with torch.no_grad():
            system = KrylovSystem(
                lambda v: space.covector(product(space.vector(v)).to(g)), g, float(g.norm()) / self.gamma
            )
        return system if system.finite else None

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _scaled(self, gradients: list[Tensor | None]) -> list[tuple[Tensor, Tensor | None, float]]:
        """Return parameters, gradients and the root of their lr."""
        roots = [math.sqrt(group["lr"]) for group in self.param_groups for p in group["params"] if p.requires_grad]
        return list(zip(self._params(), gradients, roots, strict=True))

    def _memory(self) -> dict[str, Any]:
        first = next((p for group in self.param_groups for p in group["params"]), None)
        state: dict[str, Any] = {} if first is None else self.state[first]
        if not state:
            state.update({"gamma": float(self.gamma0)} | dict.fromkeys(COUNTS, 0))
        return state

    def __getstate__(self) -> dict[str, Any]:
        own = ("curvature", "metric", "gamma0", "max_trials", "tol")  # torch's keeps groups and state alone
        return super().__getstate__() | {name: getattr(self, name) for name in own}


def _flat(params: list[Tensor], gradients: list[Tensor | None]) -> Tensor:
    """Return one vector, in at least float32 and the widest type of the parameters."""
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(params, gradients, strict=True)]
    dtype = torch.float32
    for part in parts:
        dtype = torch.promote_types(dtype, part.dtype)
    return torch.cat([part.reshape(-1).to(dtype) for part in parts])


def _hessian(gradient: Tensor, params: list[Tensor]) -> Tensor:
    """Return the derivatives of the gradient (P,), symmetrised."""
    H = jacobian(gradient, params)
    return (H + H.T) / 2


def _move(params: list[Tensor], start: list[Tensor], d: Tensor) -> None:
    parts = d.split([p.numel() for p in params])
    for p, old, part in zip(params, start, parts, strict=True):
        p.copy_(old + part.view_as(p).to(p.dtype))


def _accepted(loss: float, trial: float, g: Tensor, new: Tensor, d: Tensor, lam: float) -> bool:
    """Return whether a trial delivers enough; no comparison with NaN is true."""
    needed = float(new.square().sum()) / (8 * lam)
    if abs(float(torch.dot(g, d))) > 10 * torch.finfo(g.dtype).eps * abs(loss):
        return loss - trial >= needed
    return -float(torch.dot(new, d)) >= needed
