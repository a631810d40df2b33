"""Target surrogates: one gradient by the model's outputs pays for many cheap steps of its parameters.

Lavington, Vaswani, Babanezhad, Schmidt and Le Roux, "Target-based Surrogates for Stochastic Optimization"
(arXiv:2302.02607). Where the loss of outputs, l, is dear (a simulator, labels to be bought) and the model f is cheap,
ask once per batch for G = grad l(z_t) at z_t = f(w_t) and go down, by any inner optimizer, on

    g_t(w) = l(z_t) + <G, f(w) - z_t> + 1 / (2 eta) ||f(w) - z_t||^2

Minimised exactly, that is (stochastic) gradient descent on the outputs, projected on what the model can give; one inner
step of size a is SGD with rate a. If l is L-smooth in z and eta <= 1 / L, g_t lies above the loss, and on a full batch
any inner descent makes the loss fall. On mini-batches of a convex loss eta has to shrink as 1 / sqrt(t).

Shapes: z and G (n, ...) with n examples. With a mean over them the squared norm is divided by n, so that eta and L are
those of one example whatever n is: L is 1/4 for the logistic loss, 1/2 for softmax cross-entropy and 1 for half a
squared error.

Departures: official code minimises mean(G z / e + (z - z_t)^2), whose step size is twice eta. Outputs at w_t are
computed once, and serve the query and the first inner step. Half-precision outputs become float32, in which the loss
and the sums of the surrogate are computed. The line search takes no step size that it has not tried; official code
clips to its bounds. Not here: other divergences than the squared norm. Gradients are taken by `torch.autograd.grad`, so
that hooks of `DistributedDataParallel` do not run.
Cost of a step with m inner ones: one query, m forward and backward passes, and the inner optimizer's trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim.armijo import ArmijoDescent

__all__ = ["TargetSurrogate", "quadratic_surrogate"]

SCHEDULES = ("constant", "sqrt", "exponential", "line_search")
REDUCTIONS = ("mean", "sum")
COUNTS = ("target_queries", "target_values", "inner_steps", "forwards", "backwards")
# Official code: share of the slope to deliver, factors of a rejected step and of the last one, and bounds.
SEARCH_SHARE, SEARCH_SHRINK, SEARCH_EXPAND, SEARCH_BOUNDS = 0.5, 0.9, 1.8, (1e-4, 1e4)

Forward = Callable[[], Tensor]
TargetLoss = Callable[[Tensor], Any]


def quadratic_surrogate(z: Tensor, z_t: Tensor, G: Tensor, value: Tensor, eta: float) -> Tensor:
    """Return value + <G, z - z_t> + 1 / (2 eta) ||z - z_t||^2.

    Args:
        z: Outputs, any shape.
        z_t: Where value and gradient were asked for.
        G: Gradient of the loss there.
        value: The loss there.
        eta: Step size; for a loss that is a mean over n examples, n times that of one example.

    Example:
        >>> z_t, z = torch.tensor([1.0]), torch.tensor([3.0])
        >>> quadratic_surrogate(z, z_t, torch.tensor([0.5]), torch.tensor(7.0), eta=2.0)  # 7 + 0.5 * 2 + 2^2 / 4
        tensor(9.)
    """
    moved = z - z_t
    return value + (G * moved).sum() + moved.square().sum() / (2 * eta)


class TargetSurrogate(torch.optim.Optimizer):
    """Steps of any inner optimizer on a quadratic model of the loss in the space of outputs.

    Make schedulers of the inner learning rate with this object, or with the base: they share their groups and state.

    Args:
        base: The inner optimizer, constructed with the parameters: `ArmijoDescent` is the paper's, but any of torch's
            does, L-BFGS too.
        eta: Step size in output space, above 0; 1 / L is safe, and more is often better.
        inner_steps: Steps m of the base per query, at least 1.
        eta_schedule: "constant"; "sqrt", eta / sqrt(t + 1); "exponential", eta (1 / T)^(t / T); or "line_search", which
            starts at eta and finds each step's own by losses at moved outputs, not below the smaller of eta and 1e-4.
        total_steps: T, for the exponential schedule.
        reduction: "mean" if the loss is a mean over the first dimension of the outputs, or "sum".
        grad_tol: Inner steps stop where the surrogate's gradient is at most this long.
        restart: Forget the base's state (momenta, step sizes) before each query, as each surrogate is a new problem.

    Attributes:
        counts: What was spent: "target_queries" for gradients of the loss, "target_values" for losses alone (line
            search), "inner_steps", and "forwards" and "backwards" of the model.

    Raises:
        InvalidInput: If an argument is out of range.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = TargetSurrogate(ArmijoDescent([w]), eta=1.0)
        >>> x, y = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])
        >>> optimizer.step(lambda: w * x, lambda z: (z - y).square().mean() / 2).item()
        5.0
        >>> round(w.item(), 1), optimizer.counts["target_queries"]  # half squared error: eta = 1 moves outputs to y
        (2.0, 1)
    """

    needs_closure = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        eta: float = 1.0,
        inner_steps: int = 10,
        eta_schedule: str = "constant",
        total_steps: int | None = None,
        reduction: str = "mean",
        grad_tol: float = 1e-6,
        restart: bool = True,
    ) -> None:
        if not isinstance(base, torch.optim.Optimizer):
            raise InvalidInput(
                f"TargetSurrogate wraps an optimizer, got {type(base).__name__}; write "
                "TargetSurrogate(ArmijoDescent(parameters))"
            )
        _check(eta, inner_steps, grad_tol)
        _check_names(eta_schedule, total_steps, reduction)
        self.base, self.eta, self.inner_steps, self.grad_tol = base, eta, inner_steps, grad_tol
        self.eta_schedule, self.total_steps, self.reduction = eta_schedule, total_steps, reduction
        self.restart, self.outer_steps = restart, 0
        self.eta_bounds = min(eta, SEARCH_BOUNDS[0]), max(eta, SEARCH_BOUNDS[1])
        self.counts = dict.fromkeys(COUNTS, 0)
        super().__init__(base.param_groups, base.defaults)
        self._share()

    def step(self, forward: Forward | None = None, loss: TargetLoss | None = None) -> Any:  # type: ignore[override]
        """Query the loss once and go down on the surrogate.

        Args:
            forward: Computes the batch's outputs (n, ...) from the parameters. It must give the same for the same
                parameters: use eval mode where there is dropout or batch norm.
            loss: Takes the outputs, cut from the graph, and returns the loss, which is differentiated once; or a pair
                of the loss and its gradient by the outputs, where that comes from elsewhere.

        Returns:
            The loss at the old parameters. If the loss or its gradient is not finite, or the line search finds no step
            size, nothing moves.

        Raises:
            InvalidInput: If one of the two is missing, outputs are complex, or shapes do not fit.
        """
        if forward is None or loss is None:
            raise InvalidInput(
                "TargetSurrogate needs two functions: step(forward, loss) with forward() -> outputs and loss(outputs)"
            )
        outputs = self._forward(forward)
        if outputs.is_complex() or not outputs.requires_grad:
            raise InvalidInput(
                f"forward() must return real outputs that depend on the parameters, got {outputs.dtype} "
                f"{'without' if not outputs.requires_grad else 'with'} a graph; use torch.view_as_real for complex ones"
            )
        z_t = outputs.detach()
        value, G = self._query(loss, z_t)
        if bool(torch.isfinite(value) & torch.isfinite(G).all()):
            eta = self._current_eta(loss, z_t, value, G) * self._examples(z_t)
            if eta:
                self._descend(forward, outputs, lambda z: quadratic_surrogate(z, z_t, G, value, eta))
        self.outer_steps += 1
        return value

    def _forward(self, forward: Forward) -> Tensor:
        self.counts["forwards"] += 1
        with torch.enable_grad():
            return _at_least_float32(forward())

    def _query(self, loss: TargetLoss, z_t: Tensor) -> tuple[Tensor, Tensor]:
        self.counts["target_queries"] += 1
        z = z_t.clone()
        value, G = _answer(loss, z)
        if G is None:
            (G,) = torch.autograd.grad(value, z)
        value = torch.as_tensor(value).detach()
        if value.numel() != 1 or G.shape != z_t.shape:
            raise InvalidInput(
                f"loss(outputs) must return a scalar, or a scalar and a gradient of shape {tuple(z_t.shape)}; got "
                f"shapes {tuple(value.shape)} and {tuple(G.shape)}"
            )
        return value, G.detach()

    def _examples(self, z: Tensor) -> int:
        return len(z) if self.reduction == "mean" and z.ndim else 1

    def _current_eta(self, loss: TargetLoss, z_t: Tensor, value: Tensor, G: Tensor) -> float:
        t, T = self.outer_steps, self.total_steps
        if self.eta_schedule == "sqrt":
            return self.eta / math.sqrt(t + 1)
        if self.eta_schedule == "exponential":
            return self.eta * (1 / T) ** (t / T)  # type: ignore[operator]
        if self.eta_schedule == "line_search":
            found = self._search_eta(loss, z_t, float(value), G)
            self.eta = found or self.eta  # where none is found the next query searches from here again
            return found
        return self.eta

    def _search_eta(self, loss: TargetLoss, z_t: Tensor, value: float, G: Tensor) -> float:
        """Return the largest tried eta whose gradient step of the outputs delivers its share of the slope; or 0."""
        low, high = self.eta_bounds
        n, eta = self._examples(z_t), min(high, self.eta * (SEARCH_EXPAND if self.outer_steps else 1.0))
        slope = n * float(G.square().sum())
        while eta >= low:
            self.counts["target_values"] += 1
            moved = torch.as_tensor(_answer(loss, z_t - eta * n * G)[0]).detach()
            if float(moved) <= value - SEARCH_SHARE * eta * slope:
                return eta
            eta *= SEARCH_SHRINK
        return 0.0

    def _descend(self, forward: Forward, outputs: Tensor, surrogate: Callable[[Tensor], Tensor]) -> None:
        """Take the inner steps; the first of them uses the outputs that are there."""
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        ready: list[Tensor] = [outputs]
        length = torch.zeros(())

        def closure() -> Tensor:
            nonlocal length
            with torch.enable_grad():
                value = surrogate(ready.pop() if ready else self._forward(forward))
                # Not backward(): it would add to gradients of parameters that are not this optimizer's.
                gradients = torch.autograd.grad(value, params, allow_unused=True)
            self.counts["backwards"] += 1
            for parameter, gradient in zip(params, gradients, strict=True):
                parameter.grad = gradient
            length = _length([g for g in gradients if g is not None])
            return value.detach()

        @torch.no_grad()
        def value() -> Tensor:
            self.counts["forwards"] += 1
            return surrogate(_at_least_float32(forward()))

        if self.restart:
            self.state.clear()
        for _ in range(self.inner_steps):
            if isinstance(self.base, ArmijoDescent):
                self.base.step(closure, value)
            else:
                self.base.step(closure)  # type: ignore[arg-type]
            self.counts["inner_steps"] += 1
            if float(length) <= self.grad_tol:
                break

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer."""
        if self.param_groups is not self.base.param_groups:  # the base's own groups, read by the constructor
            super().add_param_group(param_group)
            return
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state dict, with the current eta, the steps taken and the counts beside it."""
        own = {"eta": self.eta, "outer_steps": self.outer_steps, "counts": dict(self.counts)}
        return {**self.base.state_dict(), "surrogate": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the base optimizer and, where the state dict has them, eta, steps and counts."""
        own = state_dict.get("surrogate", {})
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k != "surrogate"})
        self.eta, self.outer_steps = own.get("eta", self.eta), own.get("outer_steps", self.outer_steps)
        self.counts = {**self.counts, **own.get("counts", {})}
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("param_groups", "state")  # the base's
        return {k: v for k, v in self.__dict__.items() if k not in hidden and not k.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()


def _at_least_float32(outputs: Tensor) -> Tensor:
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _answer(loss: TargetLoss, z: Tensor) -> tuple[Any, Tensor | None]:
    """Return the loss at z, a leaf, and the gradient that the loss brings, None if it brings none."""
    with torch.enable_grad():
        result = loss(z.requires_grad_())
    return result if isinstance(result, tuple) else (result, None)


def _length(tensors: list[Tensor]) -> Tensor:
    """Return the norm of all tensors as one vector, on the first one's device."""
    if not tensors:
        return torch.zeros(())
    norms = [norm.to(tensors[0].device) for norm in torch._foreach_norm(tensors)]
    return torch.linalg.vector_norm(torch.stack(norms))


def _check(eta: float, inner_steps: int, grad_tol: float) -> None:
    if not 0 < eta < math.inf or inner_steps < 1 or not grad_tol >= 0:
        raise InvalidInput(
            f"expected a finite eta above 0, inner_steps of at least 1 and grad_tol of at least 0; got {eta}, "
            f"{inner_steps} and {grad_tol}"
        )


def _check_names(eta_schedule: str, total_steps: int | None, reduction: str) -> None:
    for name, value, known in (("eta_schedule", eta_schedule, SCHEDULES), ("reduction", reduction, REDUCTIONS)):
        if value not in known:
            raise InvalidInput(f"{name} must be one of {', '.join(known)}; got {value!r}")
    if (eta_schedule == "exponential") != (total_steps is not None) or (total_steps is not None and total_steps < 1):
        raise InvalidInput(
            f"the exponential schedule, and no other, needs total_steps of at least 1; got {total_steps}"
        )
