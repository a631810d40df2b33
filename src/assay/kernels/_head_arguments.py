"""Checks and casts of a linear head's tensors, which `linear_cross_entropy` and `linear_jsd` take alike."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["autocast", "check_chunking", "check_head"]


def autocast(tensor: Tensor) -> Tensor:
    """Cast as `F.linear` does under autocast, which leaves float64 alone."""
    device = tensor.device.type
    if tensor.is_floating_point() and tensor.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def check_head(name: str, input: Tensor, weight: Tensor, bias: Tensor | None, *, names: tuple[str, str, str]) -> None:
    """Check that a head's input (..., H), weight (V, H) and bias (V,) fit together.

    Args:
        name: The function that was given them.
        input: The head's input.
        weight: Its weight.
        bias: Its bias, or None.
        names: What the function calls the three.

    Raises:
        InvalidInput: If shapes, dtypes or devices do not fit.
    """
    if not input.is_floating_point() or input.dim() < 1:
        raise InvalidInput(
            f"{name}: {names[0]} must be floating point of shape (..., H), not {input.dtype} of shape "
            f"{tuple(input.shape)}"
        )
    if weight.dim() != 2 or weight.shape[1] != input.shape[-1] or weight.shape[0] < 1:
        expected = f"(V, {input.shape[-1]}) with V > 0 for {names[0]} {tuple(input.shape)}"
        raise InvalidInput(f"{name}: {names[1]} must be {expected}, not {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InvalidInput(f"{name}: {names[2]} must have shape ({weight.shape[0]},), not {tuple(bias.shape)}")
    for what, tensor in ((names[1], weight), (names[2], bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise InvalidInput(
                f"{name}: {what} is {tensor.dtype} but {names[0]} is {input.dtype}; cast one, or use autocast"
            )
        if tensor is not None and tensor.device != input.device:
            raise InvalidInput(f"{name}: {what} is on {tensor.device} but {names[0]} is on {input.device}")


def check_chunking(name: str, chunk_size: int | None, accumulate_dtype: torch.dtype | None) -> None:
    """Check how a head is chunked.

    Raises:
        InvalidInput: If it cannot be.
    """
    if chunk_size is not None and chunk_size < 1:
        raise InvalidInput(f"{name}: chunk_size must be at least 1, or None, not {chunk_size}")
    if accumulate_dtype is not None and not accumulate_dtype.is_floating_point:
        raise InvalidInput(f"{name}: accumulate_dtype must be a floating point type, or None, not {accumulate_dtype}")
