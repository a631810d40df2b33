"""`layer_norm` as users call it: checks and shapes around the operator; and as a module."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.kernels._derivatives import refuse_forward_mode
from assay.kernels._trailing_shape import check_trailing
from assay.kernels.layer_normalisation.op import layer_norm_forward

__all__ = ["LayerNorm", "layer_norm"]


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Subtract the mean of the last dimensions, divide by their standard deviation, scale and shift.

    $y = w \odot \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} + b$, with mean and (biased) variance over
    `normalized_shape`. Takes the arguments of `F.layer_norm` and returns the same; parameters may be of another type
    than the input, and statistics and the gradients of the parameters are summed in float32 for half precision.

    Args:
        input: (..., *normalized_shape), floating point.
        normalized_shape: The last dimensions, over which mean and variance are taken.
        weight: w of shape `normalized_shape`, or None for none; of any floating-point type.
        bias: b of shape `normalized_shape`, or None for none; of any floating-point type.
        eps: ε, finite and at least 0.

    Returns:
        A tensor of the input's shape and type.

    Raises:
        InvalidInput: If shapes, types, devices or eps don't fit, and under forward-mode differentiation.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 5, 8)
        >>> torch.allclose(layer_norm(x, (8,)), torch.nn.functional.layer_norm(x, (8,)), atol=1e-6)
        True
    """
    shape = check_trailing("layer_norm", input, normalized_shape, {"weight": weight, "bias": bias})
    if not 0.0 <= eps < math.inf:
        raise InvalidInput(f"layer_norm: eps must be finite and at least 0, not {eps}")
    refuse_forward_mode("layer_norm", input, weight, bias)
    columns = math.prod(shape)
    rows = input.reshape(math.prod(input.shape[: input.dim() - len(shape)]), columns)
    flat = (None if tensor is None else tensor.reshape(columns) for tensor in (weight, bias))
    return layer_norm_forward(rows, *flat, float(eps))[0].view(input.shape)


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` on `layer_norm`: the same arguments, parameters and state dict.

    Example:
        >>> import torch
        >>> LayerNorm(8)(torch.randn(2, 8)).shape
        torch.Size([2, 8])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, (..., *normalized_shape)."""
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
