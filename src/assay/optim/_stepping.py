"""Stepping of first-order optimizers: one function of lists of tensors, eager by `torch._foreach_*` or compiled whole.

To write an optimizer, subclass `MultiTensorOptimizer`, name in `moments` the states that are shaped like their
parameter (zeros at first), pass the options to its constructor as defaults, and write the step:

    class Momentum(MultiTensorOptimizer):
        moments = ("momentum",)

        def _update(self, group, params, grads, steps, momentum):
            torch._foreach_lerp_(momentum, grads, 1 - group["beta"])
            sizes = -group["lr"] / (1 - group["beta"] ** steps)
            torch._foreach_add_(params, torch._foreach_mul(momentum, per_tensor(sizes, params)))

`steps` is a float64 vector with one count per parameter, this step included. Arithmetic on scalars (bias corrections,
ratios of norms) is done on such vectors and handed to `_foreach` by `per_tensor`; the learning rate may be a float or a
single tensor. Never read a value back (`item`, `if tensor`), and make states of another shape in `_new_state`: then
`torch.compile(optimizer.step, fullgraph=True)` has no graph break and does not compile again when steps go on or the
rate changes (a rate that is a float: once more at its first change). The compiler fuses add, sub, mul, div, addcmul,
addcdiv, lerp, sqrt, rsqrt, reciprocal, abs, neg, sign, pow, maximum, minimum, clamp and copy; for others write
`[torch.exp(t) for t in tensors]`, and `norms` for norms. Gradients are not to be changed in place. The base skips
missing gradients, refuses sparse ones, checks lr, betas, eps, momentum and weight_decay of every group, splits by
device and type, and shows complex tensors as real ones.

Cost: in eager mode on a CPU, lists are cut where they exceed a cache (`BLOCK` entries), which halves the time of a step
against one pass over all parameters per operation; elsewhere, and compiled, a list is a group's whole device and type
(but see `cut_when_compiled`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim._dense import refuse_sparse

__all__ = ["MultiTensorOptimizer", "norms", "per_tensor", "widest"]

BLOCK = 2**17  # half a MiB in float32


class MultiTensorOptimizer(torch.optim.Optimizer):
    """Base of optimizers that update lists of tensors; see the module's head for how to write one.

    Args:
        params: Parameters or groups of them.
        defaults: Options; `capturable` is added to them, as torch's own optimizers have it: step counts are kept
            on the parameters' device, so that no step waits for it. Compiling on an accelerator sets it.

    Raises:
        InvalidInput: On an option out of its range; from `step`, on a sparse gradient.
    """

    moments: ClassVar[tuple[str, ...]] = ()
    # Compiled on a CPU, cut lists as in eager mode, for steps that need as much memory as the parameters between two
    # passes over them: each part then uses the memory of the one before. Compiling takes longer.
    cut_when_compiled: ClassVar[bool] = False

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        super().__init__(params, {"capturable": False} | defaults)

    def _update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], steps: Tensor, *moments: list[Tensor]
    ) -> None:
        """Update parameters and moments in place.

        Args:
            group: The options.
            params: Real tensors of one device and type.
            grads: Theirs.
            steps: Vector of their step counts, from 1.
            moments: A list per name in `moments`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no _update")

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return a parameter's first state, the step count aside."""
        return {name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in self.moments}

    def _kind(self, parameter: Tensor, group: dict[str, Any]) -> Hashable:
        """Return what parameters that are updated together have in common beside device and type."""
        return None

    def _check(self, group: dict[str, Any]) -> None:
        """Raise InvalidInput if an option is out of its range; subclasses extend it by their own options."""
        lr = group.get("lr")
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise InvalidInput(f"lr must be a number or a tensor of one element; got one of shape {tuple(lr.shape)}")
        for name in ("lr", "eps", "weight_decay"):
            if name in group and not 0 <= float(group[name]) < math.inf:
                raise InvalidInput(f"{name} must be a finite number of at least 0; got {group[name]}")
        rates = [*group.get("betas", ()), *([group["momentum"]] if "momentum" in group else [])]
        if not all(0 <= float(rate) < 1 for rate in rates):
            name = "betas" if "betas" in group else "momentum"
            raise InvalidInput(f"{name} must be at least 0 and below 1; got {group[name]}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options of its own where it has them.

        Raises:
            InvalidInput: On an option out of its range; the group is then not added.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
        except InvalidInput:
            del self.param_groups[-1]
            raise
        if isinstance(group.get("lr"), Tensor) and group["lr"].ndim:
            # torch's optimizers take shape (1,) too, but its `_foreach` operations only a tensor without dimensions
            group["lr"] = group["lr"].squeeze()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step with the gradients that the parameters hold.

        Args:
            closure: Evaluates the loss and its gradients; its value is returned.

        Raises:
            InvalidInput: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            sizes: list[int] = []
            lists: list[list[Tensor]] = [[] for _ in range(3 + len(self.moments))]
            whole = torch.compiler.is_compiling() and not self.cut_when_compiled
            self._init_group(group, whole, sizes, *lists)
            start = 0
            for size in sizes:
                params, grads, steps, *moments = [_real(tensors[start : start + size]) for tensors in lists]
                self._update(group, params, grads, _counted(steps), *moments)
                start += size
        return loss

    def _init_group(self, group: dict[str, Any], whole: bool, sizes: list[int], *lists: list[Tensor]) -> None:
        """Fill lists of parameters, gradients, step counts and moments, and the sizes of the parts to update at once.

        The name and the form (lists to be filled) are torch's: its compiler runs such a method instead of tracing it.
        """
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            refuse_sparse(p, type(self).__name__)
            if not self.state[p]:
                device = p.device if group["capturable"] else "cpu"
                count = torch.zeros((), dtype=torch.float32, device=device)
                self.state[p] = {"step": count, **self._new_state(p, group)}
        alike: dict[Hashable, list[Tensor]] = {}
        for p in params:
            alike.setdefault((p.device, p.dtype, self._kind(p, group)), []).append(p)
        for part in (part for same in alike.values() for part in _parts(same, whole)):
            sizes.append(len(part))
            for p in part:
                state = self.state[p]
                tensors = [p, p.grad, state["step"], *(state[name] for name in self.moments)]
                for entries, tensor in zip(lists, tensors, strict=True):
                    entries.append(tensor)


def per_tensor(values: Tensor, like: list[Tensor]) -> list[float] | list[Tensor]:
    """Return a vector's entries as `_foreach` operations take them: one scalar per tensor.

    Args:
        values: (n,).
        like: The n tensors that they will be multiplied or divided with.

    Returns:
        Floats where that needs no wait for a device, otherwise tensors without dimensions.
    """
    if values.is_cpu and not torch.compiler.is_compiling():
        return values.tolist()
    # a double would widen the compiled loop over a float tensor; half precision has no room for corrections
    values = values.to(torch.promote_types(like[0].dtype, torch.float32))
    if torch.compiler.is_compiling():
        # else the scalar is evaluated again for every few entries of a tensor; the compiler keeps what is scattered
        places = torch.arange(len(values), device=values.device)
        values = torch.zeros_like(values).scatter(0, places, values)
    return list(values.unbind())


def norms(tensors: list[Tensor], fused: bool = True) -> Tensor:
    """Return the Euclidean norm of each tensor, (n,), in at least float32.

    Args:
        tensors: n of one type.
        fused: Whether the compiler is to take norms in the loops that make the tensors. If not, it calls one operation
            for all of them, and all that they need is finished before: with `cut_when_compiled`, a part at a time.
    """
    precision = torch.promote_types(tensors[0].dtype, torch.float32)
    if fused and torch.compiler.is_compiling():
        return torch.stack([torch.linalg.vector_norm(t, dtype=precision) for t in tensors])
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=precision))


def widest(device: torch.device) -> torch.dtype:
    """Return the type for arithmetic on scalars: float64, but for MPS, which lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _counted(steps: list[Tensor]) -> Tensor:
    """Add 1 to step counts in place and return them as a vector."""
    if steps[0].is_cpu and not torch.compiler.is_compiling():
        torch._foreach_add_(steps, torch.ones(()), alpha=1.0)  # a number would be made a tensor once per count
    else:
        torch._foreach_add_(steps, 1)
    return torch.stack(steps).to(widest(steps[0].device))


def _real(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.view_as_real(t) if t.is_complex() else t for t in tensors]


def _parts(params: list[Tensor], whole: bool) -> Iterator[list[Tensor]]:
    """Cut parameters of one device where they exceed a CPU's cache, unless whole lists are asked for."""
    if whole or not params[0].is_cpu:
        yield params
        return
    part: list[Tensor] = []
    entries = 0
    for p in params:
        part.append(p)
        entries += p.numel()
        if entries >= BLOCK:
            yield part
            part, entries = [], 0
    if part:
        yield part
