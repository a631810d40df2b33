"""When an operator runs its Triton kernel: on CUDA tensors of a type that the kernels are written for, if Triton is there."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

__all__ = ["has_triton_kernel"]

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def has_triton_kernel(*tensors: Tensor) -> bool:
    """Return whether the operator's Triton kernel takes these tensors; else the any-device implementation does."""
    return all(t.device.type == "cuda" and t.dtype in _TYPES for t in tensors) and _installed()


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
