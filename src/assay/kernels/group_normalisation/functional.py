"""`group_norm` as users call it: checks and shapes around the operator; and as a module."""

from __future__ import annotations

import math

from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.kernels._derivatives import refuse_forward_mode
from assay.kernels._trailing_shape import check_trailing
from assay.kernels.group_normalisation.op import group_norm_forward

__all__ = ["GroupNorm", "group_norm"]


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Normalise each group of channels of each sample, then scale and shift by channel.

    Takes the arguments of `F.group_norm` and returns the same; parameters may be of another type than the input, and
    statistics and the gradients of the parameters are summed in float32 for half precision.

    Args:
        input: (N, C, ...), floating point.
        num_groups: How many groups the C channels form; divides C.
        weight: w (C,), or None for none; of any floating-point type.
        bias: b (C,), or None for none; of any floating-point type.
        eps: ε, finite and at least 0.

    Returns:
        A tensor of the input's shape and type.

    Raises:
        InvalidInput: If shapes, types, devices or eps don't fit, if a group has no elements, and under forward-mode
            differentiation.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 6, 4, 4)
        >>> torch.allclose(group_norm(x, 3), torch.nn.functional.group_norm(x, 3), atol=1e-6)
        True
    """
    if input.dim() < 2:
        raise InvalidInput(f"group_norm: input must have shape (N, C, ...), not {tuple(input.shape)}")
    samples, channels = input.shape[:2]
    check_trailing("group_norm", input.transpose(1, -1), channels, {"weight": weight, "bias": bias})
    if num_groups < 1 or channels % num_groups:
        raise InvalidInput(f"group_norm: num_groups must divide the {channels} channels, not be {num_groups}")
    if not 0.0 <= eps < math.inf:
        raise InvalidInput(f"group_norm: eps must be finite and at least 0, not {eps}")
    positions = math.prod(input.shape[2:])
    if channels * positions == 0:
        raise InvalidInput(f"group_norm: a group of {tuple(input.shape)} has no elements")
    refuse_forward_mode("group_norm", input, weight, bias)
    flat = input.reshape(samples, channels, positions)
    return group_norm_forward(flat, num_groups, weight, bias, float(eps))[0].view(input.shape)


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` on `group_norm`: the same arguments, parameters and state dict.

    Example:
        >>> import torch
        >>> GroupNorm(2, 6)(torch.randn(3, 6, 5)).shape
        torch.Size([3, 6, 5])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, (N, C, ...)."""
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
