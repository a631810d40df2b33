"""Gated activations c = f(a) ⊙ b and their gradients on any device, a block of rows at a time.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, GeGLU and SwiGLU:

    SwiGLU: f(a) = a σ(a)                    GeGLU: f(a) = ½ a (1 + tanh(√(2/π) (a + 0.044715 a³)))
    da = dc ⊙ b ⊙ f'(a)                      db = dc ⊙ f(a)

Shapes: a, b, c and their gradients (R, I).

Departures. Gradients never overwrite a and b, which their producers and a second backward may need. bfloat16 stays
bfloat16 between the two factors, as in the official code; float16 goes through float32, since dc ⊙ b may overflow where
the gradient does not.

Two bodies. `compiled=False` calls PyTorch's operators on a block of rows after the other, which stays in the cache;
backward needs the exponential of a twice. `compiled=True` has `torch.compile` fuse the formulas into one pass with one
exponential, in float32 for half precision.

Cost: forward reads a and b and writes c; backward reads a, b, dc and writes da and db; f is computed twice. Memory
beyond the results: a block, or three for float16; none if compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from assay.kernels._compiled_bodies import compiled_body
from assay.kernels._row_blocks import row_blocks, working_dtype

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


def _value_and_slope(x: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return f(x) and f'(x), from one exponential."""
    if activation == "silu":
        gate = torch.sigmoid(x)
        value = x * gate
        return value, gate + value * (1 - gate)
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    bend = torch.tanh(scale * (x + cubic * x**3))
    gate = 0.5 * (1 + bend)
    return x * gate, gate + 0.5 * x * (1 - bend * bend) * scale * (1 + 3 * cubic * x * x)


def _gate_into(c: Tensor, a: Tensor, b: Tensor, activation: str) -> None:
    c.copy_(_value_and_slope(a.to(working_dtype(a.dtype)), activation)[0] * b)


def _gradients_into(da: Tensor, db: Tensor, dc: Tensor, a: Tensor, b: Tensor, activation: str) -> None:
    dtype = working_dtype(a.dtype)
    value, slope = _value_and_slope(a.to(dtype), activation)
    upstream = dc.to(dtype)
    db.copy_(upstream * value)
    da.copy_(upstream * b * slope)


@torch.no_grad()
def gated_activation_blocked(a: Tensor, b: Tensor, activation: str, *, compiled: bool = False) -> Tensor:
    """Return f(a) ⊙ b, contiguous.

    Args:
        a: (R, I).
        b: (R, I), of a's dtype.
        activation: A name in `ACTIVATIONS`.
        compiled: Whether `torch.compile` fuses the steps.
    """
    forward, result = ACTIVATIONS[activation].forward, a.new_empty(a.shape)
    if compiled:
        compiled_body(_gate_into)(result, a.detach(), b.detach(), activation)
        return result
    for block in row_blocks(a.shape[0], a.shape[1], a.device):
        values = _wide(a[block])
        product = result[block] if values.dtype == result.dtype else values
        forward(values, product)
        product.mul_(b[block])
        if product.dtype != result.dtype:
            result[block] = product
    return result


@torch.no_grad()
def gated_activation_blocked_backward(
    dc: Tensor, a: Tensor, b: Tensor, activation: str, *, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the gradients by a and b, contiguous.

    Args:
        dc: (R, I), the gradient by the result.
        a: (R, I).
        b: (R, I).
        activation: A name in `ACTIVATIONS`.
        compiled: Whether `torch.compile` fuses the steps.
    """
    forward, backward = ACTIVATIONS[activation]
    da, db = a.new_empty(a.shape), a.new_empty(a.shape)
    if compiled:
        compiled_body(_gradients_into)(da, db, dc.detach(), a.detach(), b.detach(), activation)
        return da, db
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
