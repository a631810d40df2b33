"""LARS: momentum SGD whose step in each layer is scaled to the norm of the layer's weights.

Paper: "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes" (arXiv:1904.00962), algorithm 1, the
form of LARS (arXiv:1708.03888) that it analyses beside LAMB. For each parameter tensor x with gradient g:

    m <- b1 m + (1 - b1) (g + lambda x)
    x <- x - lr phi(|x|) / |m| m        phi(z) = min(max(z, low), high); the ratio is 1 where |x| or |m| is 0

Shapes: x and m have the parameter's; norms are over all of its entries, in at least float32.
Departures: as `assay.optim.LAMB`: tensors with fewer than `min_ndim` dimensions have neither decay nor adaptation, and
complex parameters are refused. The LARS of 2017 instead scales the gradient, by a trust coefficient, before it enters a
heavy-ball momentum.
Cost: one state per parameter.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from assay.optim._stepping import MultiTensorOptimizer
from assay.optim.lamb import TrustClip, check_layers, step_scaled

__all__ = ["LARS"]


class LARS(MultiTensorOptimizer):
    """Momentum SGD with a trust ratio per tensor.

    Args:
        params: Parameters or groups of them.
        lr: Relative step size, 0 or more; a tensor of one element if it is to change without compiling again.
        momentum: b1, in [0, 1).
        weight_decay: lambda, 0 or more.
        trust_clip: Lowest and highest value of phi(|x|); None for no limit.
        layer_adaptation: False takes the steps m as they are; meant for a group.
        min_ndim: Tensors with fewer dimensions have neither weight decay nor adaptation; 0 for none.

    Raises:
        InvalidInput: On an option out of its range or a complex parameter; from `step`, on a sparse gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = LARS([weight], lr=0.1, momentum=0.0, weight_decay=0.0)
        >>> weight.grad = torch.tensor([[0.0, 200.0]])
        >>> optimizer.step()
        >>> weight.data  # 4 - 0.1 * 5
        tensor([[3.0000, 3.5000]])
    """

    moments = ("momentum_buffer",)
    cut_when_compiled = True  # m is needed for its norm, and then again

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        *,
        trust_clip: TrustClip = (None, None),
        layer_adaptation: bool = True,
        min_ndim: int = 2,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        layers = {"trust_clip": trust_clip, "layer_adaptation": layer_adaptation, "min_ndim": min_ndim}
        super().__init__(params, options | layers)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_layers(group, "LARS")

    def _kind(self, parameter: Tensor, group: dict[str, Any]) -> Hashable:
        return parameter.ndim >= group["min_ndim"]

    def _update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], steps: Tensor, *moments: list[Tensor]
    ) -> None:
        (buffers,) = moments
        adapted = params[0].ndim >= group["min_ndim"]
        if adapted and group["weight_decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        # decay is in the momentum already
        step_scaled({**group, "weight_decay": 0.0}, params, list(torch._foreach_clone(buffers)), steps)
