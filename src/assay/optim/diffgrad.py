"""DiffGrad: Adam whose step is damped, entry by entry, where the gradient has stopped changing.

Paper: "diffGrad: An Optimization Method for Convolutional Neural Networks" (arXiv:1909.11015), section III, in the form
of the official diffGrad_v2.py. For parameters x with gradient g at step t, all states 0 before the first:

    m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
    xi = sigmoid(|g_prev - g|)      g_prev <- g
    x <- x - lr sqrt(1 - b2^t) / (1 - b1^t) xi m / (sqrt(v) + eps)

Shapes: x, g, m, v and xi (in [1/2, 1)) are tensors of one shape; complex ones are read as pairs of real numbers.

Know before use: gradients of trained networks are much smaller than 1, where xi is close to 1/2 whatever they do, so
that this is Adam at half the learning rate (`assay.probes.FrictionTrace` shows it). Unlike Adam it depends on the scale
of the loss: unscale gradients of mixed precision first. The official first version kept a reference instead of a copy
of the gradient, so that xi was 1/2 exactly.
Departures: `decoupled`, other frictions and the friction of the normalised change are ours. eps is added to the
uncorrected sqrt(v), as in the official code and unlike `torch.optim.Adam`.
Cost: three states per parameter (Adam has two); compiled whole about the time of a fused Adam, a sigmoid more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim._stepping import MultiTensorOptimizer, per_tensor

__all__ = ["DiffGrad", "friction"]

Friction = str | Callable[[Tensor], Tensor]
FRICTIONS = ("sigmoid", "normalized")


def friction(gradient: Tensor, previous: Tensor) -> Tensor:
    """Return diffGrad's friction coefficient xi, what an entry's step is multiplied by.

    Args:
        gradient: Any shape, real.
        previous: The gradient of the step before, same shape.

    Returns:
        Entries of at least 1/2 and below 1 (1 where rounding makes it so).

    Example:
        >>> friction(torch.tensor([0.3, 0.3]), torch.tensor([0.3, -20.0]))
        tensor([0.5000, 1.0000])
    """
    return torch.sigmoid((previous - gradient).abs())


class DiffGrad(MultiTensorOptimizer):
    """Adam with diffGrad's friction.

    Sparse gradients are refused; a gradient that is NaN or infinite spoils its parameter, as it does in torch's Adam.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate, 0 or more; a tensor of one element if it is to change without compiling again.
        betas: Decay rates of the two moments, in [0, 1).
        eps: Added to the denominator, 0 or more.
        weight_decay: 0 or more; added to the gradient times the weight.
        decoupled: Shrink the weights by lr * weight_decay instead, as AdamW does.
        friction: "sigmoid" is the paper's; "normalized" is the sigmoid of the change in units of
            sqrt(v / (1 - b2^t)) + eps, which does not depend on the loss's scale (ours); or a function of the absolute
            change, a tensor, that returns what the step is multiplied by. It is no option of groups and not part of
            the state dict.

    Raises:
        InvalidInput: On an option out of its range; from `step`, on a sparse gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = DiffGrad([weight], lr=0.1, eps=0.0)
        >>> weight.grad = torch.tensor([30.0, 1e-9])  # a change from 0: much in one entry, hardly any in the other
        >>> optimizer.step()
        >>> weight.data
        tensor([-0.1000, -0.0500])
    """

    moments = ("exp_avg", "exp_avg_sq", "previous_grad")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled: bool = False,
        friction: Friction = "sigmoid",
    ) -> None:
        if not callable(friction) and friction not in FRICTIONS:
            raise InvalidInput(f"friction must be a function or one of {', '.join(FRICTIONS)}; got {friction!r}")
        self.friction = friction
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decoupled": decoupled}
        super().__init__(params, options)

    def _update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], steps: Tensor, *moments: list[Tensor]
    ) -> None:
        exp_avgs, exp_avg_sqs, previous = moments
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        if decay and group["decoupled"]:
            torch._foreach_mul_(params, 1 - lr * decay)
        elif decay:
            grads = list(torch._foreach_add(grads, params, alpha=decay))
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        root = (1 - beta2**steps).sqrt()
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        # the previous gradients' memory is free from here on: it holds the change, the friction and the step in turn
        torch._foreach_sub_(previous, grads)
        torch._foreach_abs_(previous)
        if self.friction == "normalized":
            scales = torch._foreach_div(denominators, per_tensor(root, params))
            torch._foreach_add_(scales, group["eps"])
            torch._foreach_div_(previous, scales)
        if callable(self.friction):
            torch._foreach_copy_(previous, [self.friction(change) for change in previous])
        else:
            _sigmoid_(previous)
        torch._foreach_mul_(previous, exp_avgs)
        torch._foreach_mul_(previous, per_tensor(-lr * root / (1 - beta1**steps), params))
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(params, previous, denominators)
        torch._foreach_copy_(previous, grads)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "friction": self.friction}


def _sigmoid_(tensors: list[Tensor]) -> None:
    if torch.compiler.is_compiling():  # it would call _foreach_sigmoid_ apart from the fused loop
        torch._foreach_copy_(tensors, [torch.sigmoid(t) for t in tensors])
    else:
        torch._foreach_sigmoid_(tensors)
