"""LAMB: Adam whose step in each layer is scaled to the norm of the layer's weights, for large batches.

Paper: "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes" (arXiv:1904.00962), algorithm 2, as
tensorflow-addons has it. For each parameter tensor x (a "layer") with gradient g at step t:

    m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
    u = [m / (1 - b1^t)] / (sqrt(v / (1 - b2^t)) + eps) + lambda x
    x <- x - lr phi(|x|) / |u| u        phi(z) = min(max(z, low), high); the ratio is 1 where |x| or |u| is 0

so that |dx| = lr |x|: lr is a relative step, not comparable with AdamW's (one to ten times as large in the study here).
Weight decay acts inside u, whose other part has entries of about 1, so lambda is not comparable with AdamW's either.

Shapes: x, m, v and u have the parameter's; norms are over all of its entries, in at least float32.
Departures: tensors with fewer than `min_ndim` dimensions (biases, norms' scales) are left out of decay and adaptation
by their number of dimensions instead of by name, since options are saved in the state dict as plain data. Complex
parameters are refused. Bias correction can be switched off, as in early versions of the paper.
Cost: two states per parameter, as Adam; two norms more than its time.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim._stepping import MultiTensorOptimizer, norms, per_tensor, widest

__all__ = ["LAMB", "lamb_direction", "trust_ratio"]

TrustClip = tuple[float | None, float | None]


def trust_ratio(weight_norm: Tensor, update_norm: Tensor, trust_clip: TrustClip = (None, None)) -> Tensor:
    """Return phi(|x|) / |u|, and 1 where |x| or |u| is 0.

    Args:
        weight_norm: |x|, any shape.
        update_norm: |u|, same shape.
        trust_clip: Lowest and highest value of phi; None for no limit.

    Example:
        >>> trust_ratio(torch.tensor([6.0, 0.0]), torch.tensor([2.0, 2.0]))
        tensor([3., 1.])
    """
    low, high = trust_clip
    phi = weight_norm if low is None and high is None else weight_norm.clamp(low, high)
    return torch.where((weight_norm > 0) & (update_norm > 0), phi / update_norm, 1.0)


def lamb_direction(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    bias_correction: bool = True,
) -> Tensor:
    """Return u, the direction that LAMB normalises, from the moments of Adam.

    Args:
        weight: x, any shape.
        exp_avg: m, same shape.
        exp_avg_sq: v, same shape.
        step: t, from 1.
        betas: b1 and b2.
        eps: Added to the square root.
        weight_decay: lambda.
        bias_correction: Whether to divide the moments by 1 - b^t.

    Example:
        >>> lamb_direction(torch.ones(2), torch.tensor([0.1, 0.2]), torch.tensor([0.001, 0.004]), step=1, eps=0.0)
        tensor([1., 1.])
    """
    first, second = (1 - beta**step for beta in betas) if bias_correction else (1.0, 1.0)
    return (exp_avg / first) / ((exp_avg_sq / second).sqrt() + eps) + weight_decay * weight


class LAMB(MultiTensorOptimizer):
    """Adam with a trust ratio per tensor.

    Sparse gradients are refused; a gradient that is NaN or infinite spoils its parameter, as it does in torch's Adam.

    Args:
        params: Parameters or groups of them.
        lr: Relative step size, 0 or more; a tensor of one element if it is to change without compiling again.
        betas: Decay rates of the two moments, in [0, 1).
        eps: Added to the denominator, 0 or more.
        weight_decay: lambda, 0 or more.
        bias_correction: Whether to divide the moments by 1 - b^t.
        trust_clip: Lowest and highest value of phi(|x|); None for no limit.
        layer_adaptation: False takes the steps u as they are; meant for a group.
        min_ndim: Tensors with fewer dimensions have neither weight decay nor adaptation; 0 for none.

    Raises:
        InvalidInput: On an option out of its range or a complex parameter; from `step`, on a sparse gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.full((2, 2), 3.0))
        >>> optimizer = LAMB([weight], lr=0.1)
        >>> weight.grad = torch.tensor([[1.0, -1.0], [50.0, 1e-3]])
        >>> before = weight.detach().clone()
        >>> optimizer.step()
        >>> ((weight.data - before).norm() / before.norm()).item()  # a tenth of the weights' norm
        0.1...
    """

    moments = ("exp_avg", "exp_avg_sq")
    cut_when_compiled = True  # u is needed for its norm, and then again

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        trust_clip: TrustClip = (None, None),
        layer_adaptation: bool = True,
        min_ndim: int = 2,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        layers = {"trust_clip": trust_clip, "layer_adaptation": layer_adaptation, "min_ndim": min_ndim}
        super().__init__(params, options | {"bias_correction": bias_correction} | layers)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_layers(group, "LAMB")

    def _kind(self, parameter: Tensor, group: dict[str, Any]) -> Hashable:
        return parameter.ndim >= group["min_ndim"]

    def _update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], steps: Tensor, *moments: list[Tensor]
    ) -> None:
        exp_avgs, exp_avg_sqs = moments
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        first, root = torch.ones_like(steps), torch.ones_like(steps)
        if group["bias_correction"]:
            first, root = 1 - beta1**steps, (1 - beta2**steps).sqrt()
        # u without decay is root / first m / (sqrt(v) + root eps): the corrections are scalars, not passes over v and m
        updates = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_add_(updates, per_tensor(root * group["eps"], params))
        updates = torch._foreach_div(exp_avgs, updates)
        torch._foreach_mul_(updates, per_tensor(root / first, params))
        step_scaled(group, params, list(updates), steps)


def check_layers(group: dict[str, Any], name: str) -> None:
    """Raise InvalidInput if a group's `trust_clip` or `min_ndim` is out of range, or a parameter is complex."""
    low, high = group["trust_clip"]
    if not 0 <= (0 if low is None else low) <= (math.inf if high is None else high):
        raise InvalidInput(f"trust_clip must be (low, high) with 0 <= low <= high, or None; got {group['trust_clip']}")
    if group["min_ndim"] < 0:
        raise InvalidInput(f"min_ndim must be at least 0; got {group['min_ndim']}")
    if any(p.is_complex() for p in group["params"]):
        raise InvalidInput(f"{name} needs real parameters; give torch.view_as_real of complex ones")


def step_scaled(group: dict[str, Any], params: list[Tensor], updates: list[Tensor], steps: Tensor) -> None:
    """Add weight decay to updates, scale them to their weights' norms, and subtract lr times them; uses up `updates`.

    Args:
        group: Options: lr, weight_decay, trust_clip, layer_adaptation, min_ndim.
        params: Weights, all of them with at least `min_ndim` dimensions or all with fewer.
        updates: One per weight.
        steps: Their counts, (n,).
    """
    sizes = -group["lr"] * torch.ones_like(steps)
    if params[0].ndim >= group["min_ndim"]:
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        if group["layer_adaptation"]:
            # where the norms are: on the counts' device they would have to be waited for
            precision = widest(params[0].device)
            weight, update = (norms(tensors, fused=False).to(precision) for tensors in (params, updates))
            sizes = -group["lr"] * trust_ratio(weight, update, group["trust_clip"])
    torch._foreach_mul_(updates, per_tensor(sizes, params))
    torch._foreach_add_(params, updates)
