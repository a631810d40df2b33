"""What the fused operators refuse: derivatives that they do not have must raise, and never come out as zero."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from assay.errors import InvalidInput

__all__ = ["refuse_forward_mode", "refuse_second_order"]


def refuse_second_order(name: str) -> None:
    """Raise in a backward pass that is itself recorded for differentiation.

    Raises:
        RuntimeError: Naming the plain reference, `NAME_reference`.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} has no second derivative (backward was called with create_graph=True); "
            f"use assay.kernels.{name}_reference, which autograd differentiates as often as you like"
        )


def refuse_forward_mode(name: str, *tensors: Tensor | None) -> None:
    """Raise if a tensor carries a tangent, which a custom operator would drop.

    Raises:
        InvalidInput: Naming the plain reference, `NAME_reference`.
    """
    if torch.compiler.is_compiling():
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise InvalidInput(f"{name} has no forward mode; use assay.kernels.{name}_reference")
