"""Second derivatives by way of an operation's plain reference; forward mode, which operators lack, is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from assay.errors import InvalidInput

__all__ = ["differentiable_gradients", "refuse_forward_mode", "refuse_second_order"]


def differentiable_gradients(
    reference: Callable[..., Tensor], tensors: Sequence[Tensor | None], needs: Sequence[bool], upstream: Tensor
) -> tuple[Tensor | None, ...]:
    """Return gradients of a plain function that can themselves be differentiated; `None` where not needed.

    Args:
        reference: Tensors in, one tensor out, of differentiable PyTorch operations.
        tensors: Its arguments.
        needs: Which of them need a gradient.
        upstream: The gradient by the function's result, of its shape.
    """
    wanted = [t for t, needed in zip(tensors, needs, strict=True) if needed and t is not None]
    with torch.enable_grad():
        value = reference(*tensors)
        found = iter(torch.autograd.grad(value, wanted, upstream.to(value.dtype), create_graph=True))
    return tuple(next(found) if needed else None for needed in needs)


def refuse_forward_mode(name: str, *tensors: Tensor | None) -> None:
    """Raise if a tensor carries a tangent, which an operator would drop without a word.

    Raises:
        InvalidInput: Naming the plain function that has forward mode.
    """
    if torch.compiler.is_compiling():
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise InvalidInput(f"{name} has no forward mode; use assay.kernels.{name}_reference")


def refuse_second_order(name: str) -> None:
    """Raise in a backward pass that is itself recorded for differentiation, where no formula for that is at hand.

    Raises:
        RuntimeError: Naming the plain function that has second derivatives.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} has no second derivative (backward was called with create_graph=True); "
            f"use assay.kernels.{name}_reference, which keeps everything that it needs"
        )
