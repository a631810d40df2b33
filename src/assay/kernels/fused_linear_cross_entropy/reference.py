"""The loss of a linear classifier head, written plainly: logits first, then their cross-entropy, autograd for the rest.

What the chunked implementation must equal. It keeps several (R, V) tensors, and supports everything that autograd does:
double backward, forward mode, `torch.func`.

Shapes: R rows (tokens), H input features, V classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from assay.kernels.row_cross_entropy.reference import cross_entropy_reference

__all__ = ["linear_cross_entropy_reference"]


def linear_cross_entropy_reference(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """Return what `linear_cross_entropy` returns, with all logits in memory.

    Args, shapes and the result are those of `assay.kernels.linear_cross_entropy`; inputs are not checked.
    """
    return cross_entropy_reference(
        F.linear(input, linear_weight, linear_bias),
        target,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
    )
