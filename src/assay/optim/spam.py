"""SPAM: Adam that clips entries far above their own mean square, and resets its moments with a new warm-up.

Paper: Huang et al., "SPAM: Spike-Aware Adam with Momentum Reset" (arXiv:2501.06842), as its successor's official code
has it; the baseline of "Stable-SPAM" (arXiv:2502.17055). At step t = 1, 2 ... of a tensor, with k = t mod R:

    m, v <- 0                                             if k = 0
    G_i <- sign(G_i) sqrt(theta v_i)                      where G_i^2 > theta v_i, if t >= d and k >= d
    m, v <- Adam's moments of G
    w <- w - lr c m' / (sqrt(v') + eps / sqrt(1 - b2^t))  with m', v' corrected for bias by t, which goes on at resets
    c = 1 - 0.99 (1 + cos(pi k / (W + 1))) / 2            for k < W after the first reset, else 1

Shapes: tensors of any shape; all operations are by entry.

Departures: the sparse moments of the paper's memory-saving form are left out; steps are counted per tensor; gradients
are left as they are, where the official code clips them in place. A quirk that stays: an entry that had no gradient
since the last reset has v = 0, and while clipping is on its gradients are clipped to 0.
Cost: Adam's state; on top of its time, five passes over each tensor in steps that clip.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim._numbers import Numbers, add_quotients, clear, numbers
from assay.optim._stepping import MultiTensorOptimizer

__all__ = ["SPAM"]


class SPAM(MultiTensorOptimizer):
    """Spike-aware Adam with momentum reset.

    Groups may differ in every option. Of a complex parameter, real and imaginary parts are entries of their own. A
    gradient entry that is NaN makes its weight NaN, as in `torch.optim.Adam`; so does an infinite one, but while
    clipping is on it is clipped.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate, 0 or more; a float or a tensor of one element.
        betas: Decay rates of the two moments, in [0, 1).
        threshold: theta, above 0: squared gradients are limited to this many times their mean; None for no clipping.
        reset_every: R, steps between resets of the moments; 0 for none.
        warmup: W, steps in which the rate rises again from a hundredth after a reset; 0 for none.
        clip_after: d, steps without clipping at the start and after a reset.
        eps: Added to the denominator, 0 or more.
        weight_decay: Decoupled weight decay, 0 or more; after the step, as in the official code.

    Raises:
        InvalidInput: On an option out of its range; from `step`, on a sparse gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = SPAM([weight], lr=0.1, clip_after=2, threshold=4.0)
        >>> for gradient in (1.0, 1e6):
        ...     weight.grad = torch.tensor([gradient])
        ...     optimizer.step()
        >>> round(optimizer.state[weight]["exp_avg_sq"].item(), 6)  # 0.999 * 0.001 + 0.001 * (4 * 0.001)
        0.001003
    """

    moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        threshold: float | None = 5000.0,
        reset_every: int = 500,
        warmup: int = 150,
        clip_after: int = 20,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        spikes = {"threshold": threshold, "reset_every": reset_every, "warmup": warmup, "clip_after": clip_after}
        super().__init__(params, adam | spikes)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if group["threshold"] is not None and not 0 < group["threshold"] < math.inf:
            raise InvalidInput(f"threshold must be a finite number above 0, or None; got {group['threshold']!r}")
        for name in ("reset_every", "warmup", "clip_after"):
            if isinstance(group[name], bool) or not isinstance(group[name], int) or group[name] < 0:
                raise InvalidInput(f"{name} must be a whole number of at least 0; got {group[name]!r}")

    def _update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], steps: Tensor, *moments: list[Tensor]
    ) -> None:
        exp_avg, exp_avg_sq = moments
        afresh, slack, size = numbers(partial(_numbers, group), params, steps)
        if group["reset_every"]:
            clear(exp_avg, afresh)
            clear(exp_avg_sq, afresh)
        if group["threshold"] is not None and not all(isinstance(each, float) and each == math.inf for each in slack):
            grads = list(_clipped(grads, exp_avg_sq, group["threshold"], slack))
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(exp_avg, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sq, beta2)
        torch._foreach_addcmul_(exp_avg_sq, grads, grads, 1 - beta2)
        denominators = torch._foreach_sqrt(exp_avg_sq)
        torch._foreach_add_(denominators, group["eps"])
        add_quotients(params, exp_avg, denominators, size)
        if group["weight_decay"] != 0:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])


def _numbers(group: dict[str, Any], t: Any) -> tuple[Any, Any, Any]:
    """Return 1 where moments start afresh and 0 elsewhere, infinity where nothing is clipped, and the step's size."""
    every, length, after = group["reset_every"], group["warmup"], group["clip_after"]
    since = t % every if every else t
    clips = (t >= after) & (since >= after)
    slack = torch.where(clips, 0.0, math.inf) if isinstance(clips, Tensor) else (0.0 if clips else math.inf)
    lr = float(group["lr"]) if isinstance(t, float) else group["lr"]
    size = -lr * (1 - group["betas"][1] ** t) ** 0.5 / (1 - group["betas"][0] ** t)
    if not every:
        return 0.0, slack, size
    angle = math.pi * since / (length + 1)
    fall = 0.99 * (1 + (torch.cos(angle) if isinstance(angle, Tensor) else math.cos(angle))) / 2
    return (since == 0) + 0 * t, slack, size * (1 - (t >= every) * (since < length) * fall)


def _clipped(grads: list[Tensor], exp_avg_sq: list[Tensor], threshold: float, slack: Numbers) -> tuple[Tensor, ...]:
    """Return gradients within sqrt(threshold v) + slack."""
    bounds = torch._foreach_sqrt(torch._foreach_mul(exp_avg_sq, threshold))
    torch._foreach_add_(bounds, slack)
    return torch._foreach_maximum(torch._foreach_minimum(grads, bounds), torch._foreach_neg(bounds))
