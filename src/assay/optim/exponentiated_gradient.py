"""Exponentiated gradient descent under Dale's law: weights change by factors, so none of them ever changes its sign.

Paper: "Dale meets Langevin" (arXiv:2510.02730, v1), the update that its sampler is the stochastic counterpart of. For
weights w of either sign with gradient g:

    w <- w o exp(-lr sign(w) o g)

so log|w| changes by exactly -lr sign(w) g: mirror descent with the potential sum |w| log|w|, whose step is
-lr |w| g while it is small. Weights >= 0: the unnormalised exponentiated gradient of Kivinen, Warmuth (1997).

Shapes: w and g are tensors of one shape, real.

Know before use: a weight that is 0 stays 0, so biases that begin there can't learn by factors. Parameters of fewer than
`min_ndim` dimensions (biases and gains, no synapses) therefore take gradient steps, as if their size were
`additive_size`; `min_ndim=0` treats all alike. As a weight moves by lr |w| g, rates are much larger than SGD's, by
about 1/|w|. Nothing bounds a factor: clip gradients that may be large, since a weight that underflows to 0 stays there.
Weights of 16 bits are multiplied in float32, but stay where they are if a factor is too near 1 for their precision.
Departures: `min_ndim`, `additive_size` and `weight_decay` are ours. The decay of log|w| is an L1 penalty. There is no
switch for exp(-lr g) without signs: on weights above 0 it is the same, on others it would climb.
Cost: no state but the step count; one exp per weight.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim._stepping import MultiTensorOptimizer

__all__ = ["ExponentiatedGradient"]


class ExponentiatedGradient(MultiTensorOptimizer):
    """Gradient descent by factors exp(-lr sign(w) g), which keeps every weight's sign.

    Sparse gradients are refused; a gradient that is NaN or infinite spoils its weight, as it does in torch's SGD.

    Args:
        params: Parameters or groups of them, real.
        lr: Learning rate, 0 or more; a tensor of one element if it is to change without compiling again.
        weight_decay: 0 or more; log|w| falls by lr * weight_decay in each step, which is an L1 penalty of that weight.
            Parameters that take gradient steps are not decayed.
        min_ndim: Parameters of fewer dimensions take gradient steps and may change their sign.
        additive_size: |w| that these count as, above 0: their step is -lr * additive_size * g.

    Raises:
        InvalidInput: On an option out of its range or a complex parameter; from `step`, on a sparse gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[1.0, -1.0, 0.0]]))
        >>> optimizer = ExponentiatedGradient([weight], lr=2.0)
        >>> weight.grad = torch.tensor([[0.5, 0.5, 0.5]])
        >>> optimizer.step()  # factors 1 / e, e and 1
        >>> weight.data
        tensor([[ 0.3679, -2.7183,  0.0000]])
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        *,
        weight_decay: float = 0.0,
        min_ndim: int = 2,
        additive_size: float = 0.1,
    ) -> None:
        options = {"lr": lr, "weight_decay": weight_decay, "min_ndim": min_ndim, "additive_size": additive_size}
        super().__init__(params, options)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if not isinstance(group["min_ndim"], int) or group["min_ndim"] < 0:
            raise InvalidInput(f"min_ndim must be an integer of at least 0; got {group['min_ndim']!r}")
        if not 0 < group["additive_size"] < math.inf:
            raise InvalidInput(f"additive_size must be a finite number above 0; got {group['additive_size']}")
        for p in group["params"]:
            if p.is_complex():
                raise InvalidInput(
                    f"ExponentiatedGradient needs real parameters, which have signs to keep; got one of {p.dtype} and "
                    f"shape {tuple(p.shape)}: optimize its torch.view_as_real"
                )

    def _kind(self, parameter: Tensor, group: dict[str, Any]) -> Hashable:
        return parameter.ndim >= group["min_ndim"]

    def _update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], steps: Tensor, *moments: list[Tensor]
    ) -> None:
        lr = group["lr"]
        if params[0].ndim < group["min_ndim"]:
            torch._foreach_add_(params, torch._foreach_mul(grads, -lr * group["additive_size"]))
            return
        # in 16 bits, factors a little below 1 would survive rounding and those a little above not: weights would decay
        narrow = params[0].dtype.itemsize < 4
        weights = [p.float() for p in params] if narrow else params
        # signs are ours to overwrite: they become the exponents, then the factors
        factors = list(torch._foreach_sign(weights))
        torch._foreach_mul_(factors, grads)
        if group["weight_decay"]:
            torch._foreach_add_(factors, group["weight_decay"])
        torch._foreach_mul_(factors, -lr)
        if torch.compiler.is_compiling():  # it would call _foreach_exp_ apart from the fused loop
            torch._foreach_copy_(factors, [torch.exp(t) for t in factors])
        else:
            torch._foreach_exp_(factors)
        torch._foreach_mul_(weights, factors)
        if narrow:
            torch._foreach_copy_(params, weights)
