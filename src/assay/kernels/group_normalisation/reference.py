"""Group normalisation written plainly, with autograd for the rest.

What the fused implementations must equal. Autograd keeps several tensors of the input's size; in return there are
second derivatives, forward mode and `torch.func`.

Shapes: N samples, C channels in G groups, S positions.
"""

from __future__ import annotations

import math

from torch import Tensor

from assay.kernels.layer_normalisation.reference import layer_norm_reference

__all__ = ["group_norm_reference"]


def group_norm_reference(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return what `group_norm` returns, with intermediates in memory.

    Args, shapes and the result are those of `assay.kernels.group_norm`; inputs are not checked.
    """
    samples, channels = input.shape[:2]
    grouped = input.reshape(samples, num_groups, channels // num_groups * math.prod(input.shape[2:]))
    working = grouped.double() if grouped.element_size() == 8 else grouped.float()
    y = layer_norm_reference(working, working.shape[-1], eps=eps).reshape(input.shape)
    per_channel = (channels, *[1] * (input.dim() - 2))
    if weight is not None:
        y = y * weight.view(per_channel)
    if bias is not None:
        y = y + bias.view(per_channel)
    return y.to(input.dtype)
