"""The operations of COAT's precision flow, with what they keep for backward in FP8.

Each rounds its inputs to FP8 first and computes with the rounded numbers, so backward differentiates what forward did;
the rounding itself counts as the identity. Inputs of products have one scale (E4M3; gradients E5M2), inputs of
anything else a scale per group (E4M3). Gradients between operations are not rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from assay.compress.fp8_scaling import dequantize, quantize_per_group, quantize_per_tensor

aten = torch.ops.aten
# What each activation is, and its gradient from the upstream gradient and its input.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, aten.silu_backward),
    "gelu": (F.gelu, aten.gelu_backward),
    "relu": (F.relu, lambda gradient, x: aten.threshold_backward(gradient, x, 0)),
}


def _product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """Return the product of two matrices in FP8 (codes and scale), computed on the exact codes.

    float16 could not hold sums of products of codes, which are up to 448 or 57344 each, so it is computed in float32.
    """
    working = torch.float32 if dtype is torch.float16 else dtype
    (a_codes, a_scale), (b_codes, b_scale) = a, b
    product = torch.mm(a_codes.to(working), b_codes.to(working))
    return product.mul_((a_scale * b_scale).to(torch.promote_types(working, torch.float32))).to(dtype)


def _rows(codes: Tensor) -> Tensor:
    return codes.reshape(-1, codes.shape[-1])


class Linear(torch.autograd.Function):
    """x (..., d) times several weights (k, d), which share the one saved copy of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group_size: int, *weights: Tensor) -> tuple[Tensor, ...]:
        """Return one product (..., k) per weight; saves x in FP8, 1 byte per entry."""
        codes, scale = quantize_per_tensor(x, group_size=group_size)
        ctx.save_for_backward(codes, scale, *weights)
        ctx.dtype, ctx.group_size = x.dtype, group_size
        products = []
        for weight in weights:
            w_codes, w_scale = quantize_per_tensor(weight, group_size=group_size)
            y = _product((_rows(codes), scale), (w_codes.T, w_scale), x.dtype)
            products.append(y.view(*x.shape[:-1], len(weight)))
        return tuple(products)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of each weight, from upstream gradients rounded to E5M2."""
        codes, scale, *weights = ctx.saved_tensors
        x_gradient, weight_gradients = None, []
        for needed, weight, gradient in zip(ctx.needs_input_grad[2:], weights, gradients, strict=True):
            g_codes, g_scale = quantize_per_tensor(gradient, torch.float8_e5m2, group_size=ctx.group_size)
            rounded = (_rows(g_codes), g_scale)
            if ctx.needs_input_grad[0]:
                part = _product(rounded, quantize_per_tensor(weight, group_size=ctx.group_size), ctx.dtype)
                x_gradient = part if x_gradient is None else x_gradient.add_(part)
            transposed = (rounded[0].T, g_scale)
            weight_gradients.append(_product(transposed, (_rows(codes), scale), weight.dtype) if needed else None)
        return None if x_gradient is None else x_gradient.view(codes.shape), None, *weight_gradients


class Activation(torch.autograd.Function):
    """An activation of x (..., d) rounded per group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, group_size: int) -> Tensor:
        """Return the activation; saves x in FP8, 1 + 2 / group_size bytes per entry."""
        codes, scale = quantize_per_group(x, group_size)
        ctx.save_for_backward(codes, scale)
        ctx.settings = name, group_size
        return ACTIVATIONS[name][0](dequantize(codes, scale, group_size, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of x."""
        name, group_size = ctx.settings
        codes, scale = ctx.saved_tensors
        x = dequantize(codes, scale, group_size, gradient.dtype)
        return ACTIVATIONS[name][1](gradient, x), None, None


class Multiply(torch.autograd.Function):
    """The entrywise product of a and b (..., d), both rounded per group."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, group_size: int) -> Tensor:
        """Return the product; saves both factors in FP8."""
        saved = (*quantize_per_group(a, group_size), *quantize_per_group(b, group_size))
        ctx.save_for_backward(*saved)
        ctx.group_size = group_size
        return dequantize(*saved[:2], group_size, a.dtype).mul_(dequantize(*saved[2:], group_size, a.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of a and b."""
        a_codes, a_scale, b_codes, b_scale = ctx.saved_tensors
        a = dequantize(a_codes, a_scale, ctx.group_size, gradient.dtype)
        b = dequantize(b_codes, b_scale, ctx.group_size, gradient.dtype)
        return b.mul_(gradient), a.mul_(gradient), None


class RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight for x (..., d) rounded per group and weight (d,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, group_size: int) -> Tensor:
        """Return the normalised x; saves x in FP8 and 4 bytes per row."""
        codes, scale = quantize_per_group(x, group_size)
        rounded = dequantize(codes, scale, group_size, torch.promote_types(x.dtype, torch.float32))
        inverse = rounded.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(codes, scale, inverse, weight)
        ctx.group_size = group_size
        return (rounded.mul_(inverse) * weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and weight."""
        codes, scale, inverse, weight = ctx.saved_tensors
        normalised = dequantize(codes, scale, ctx.group_size, inverse.dtype).mul_(inverse)
        upstream = gradient * weight.to(inverse.dtype)
        along = (upstream * normalised).mean(-1, keepdim=True)
        x_gradient = (upstream - normalised * along).mul_(inverse).to(gradient.dtype)
        weight_gradient = (gradient * normalised).reshape(-1, len(weight)).sum(0).to(weight.dtype)
        return x_gradient, weight_gradient, None, None
