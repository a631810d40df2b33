"""Gated activations c = f(a) ⊙ b and their gradients on any device, a block of rows at a time.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, GeGLU and SwiGLU:

    SwiGLU: f(a) = a σ(a)                    GeGLU: f(a) = ½ a (1 + tanh(√(2/π) (a + 0.044715 a³)))
    da = dc ⊙ b ⊙ f'(a)                      db = dc ⊙ f(a)

Shapes: a, b, c and their gradients (R, I).

Departures. Gradients never overwrite a and b, which their producers and a second backward may need. bfloat16 stays
bfloat16 between the two factors, as in the official code; float16 goes through float32, since dc ⊙ b may overflow where
the gradient does not.

Cost: forward reads a and b and writes c; backward reads a, b, dc and writes da and db; f is computed twice. Memory
beyond the results: a block, or three for float16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from assay.kernels._row_blocks import row_blocks

__all__ = ["ACTIVATIONS", "gated_activation_blocked", "gated_activation_blocked_backward"]

aten = torch.ops.aten


class _Activation(NamedTuple):
    """An activation that writes into `out`, and its gradient by `upstream` that does."""

    forward: Callable[[Tensor, Tensor], object]
    backward: Callable[[Tensor, Tensor, Tensor], object]


ACTIVATIONS = {
    "silu": _Activation(
        lambda x, out: aten.silu.out(x, out=out),
        lambda upstream, x, out: aten.silu_backward.grad_input(upstream, x, grad_input=out),
    ),
    "gelu": _Activation(
        lambda x, out: aten.gelu.out(x, approximate="tanh", out=out),
        lambda upstream, x, out: aten.gelu_backward.grad_input(upstream, x, approximate="tanh", grad_input=out),
    ),
}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def gated_activation_blocked(a: Tensor, b: Tensor, activation: str) -> Tensor:
    """Return f(a) ⊙ b, contiguous.

    Args:
        a: (R, I).
        b: (R, I), of a's dtype.
        activation: A name in `ACTIVATIONS`.
    """
    forward, result = ACTIVATIONS[activation].forward, a.new_empty(a.shape)
    for block in row_blocks(a.shape[0], a.shape[1], a.device):
        values = _wide(a[block])
        product = result[block] if values.dtype == result.dtype else values
        forward(values, product)
        product.mul_(b[block])
        if product.dtype != result.dtype:
            result[block] = product
    return result


def gated_activation_blocked_backward(dc: Tensor, a: Tensor, b: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return the gradients by a and b, contiguous.

    Args:
        dc: (R, I), the gradient by the result.
        a: (R, I).
        b: (R, I).
        activation: A name in `ACTIVATIONS`.
    """
    forward, backward = ACTIVATIONS[activation]
    da, db = a.new_empty(a.shape), a.new_empty(a.shape)
    for block in row_blocks(a.shape[0], a.shape[1], a.device):
        values, upstream = _wide(a[block]), _wide(dc[block])
        same = values.dtype == a.dtype
        of_a, of_b = (da[block], db[block]) if same else (torch.empty_like(values), torch.empty_like(values))
        forward(values, of_b)
        of_b.mul_(upstream)
        backward(upstream * b[block], values, of_a)
        if not same:
            da[block], db[block] = of_a, of_b
    return da, db
