"""How Triton kernels over rows are launched: block sizes, warps, programs; and when they can be."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

__all__ = ["LARGEST_BLOCK", "next_power_of_two", "persistent_programs", "runs_triton", "warps_for"]

LARGEST_BLOCK = 16384  # the widest row that programs hold in their registers, with at most a few bytes spilled


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def runs_triton(tensor: Tensor) -> bool:
    """Return whether a tensor's kernels are Triton's: it is on a CUDA or ROCm device, not float64, Triton is there."""
    return tensor.is_cuda and tensor.dtype != torch.float64 and _has_triton()


def next_power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a positive number."""
    return 1 << max(number - 1, 0).bit_length()


def warps_for(block: int) -> int:
    """Return warps for a program that holds a block of a row, as Liger chooses them."""
    return 4 if block < 2048 else 8 if block < 8192 else 16 if block < 16384 else 32


def persistent_programs(device: torch.device, rows: int) -> int:
    """Return how many programs share the rows if each sums over its own: one per multiprocessor."""
    if device.type != "cuda":
        return min(rows, 4)  # Triton's interpreter, in tests
    return min(rows, torch.cuda.get_device_properties(device).multi_processor_count)
