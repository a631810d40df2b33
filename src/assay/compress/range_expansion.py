"""Dynamic range expansion: a power per group that stretches its magnitudes over all of an FP8 format.

Paper: "COAT: Compressing Optimizer States and Activations for Memory-Efficient FP8 Training" (arXiv:2410.19313),
section "Dynamic Range Expansion". For a group x with the largest magnitude M and the smallest one above zero m:

    k = log R / log(M / m),    q = fp8(L sign(x) (|x| / M)^k),    x ~ M sign(q) (|q| / L)^(1/k)

L is the format's largest number and R the range to fill. R = L^2 / 2 and k a multiple of 1/16 (rounded down) are the
official code's: 1.0e5 for E4M3 and 1.6e9 for E5M2, a factor of 2.3 within the ratio of the largest number to the
smallest one, which is the paper's R. k is above 1 where a group spans less than R, as moments do, and below 1
where it spans more.

Shapes: x of any shape, flattened and cut into n = ceil(N / group_size) groups across rows; the last may be shorter.

Departures from the official code, whose codes are the same otherwise: magnitudes are measured from M instead of from
sqrt(M m), which needs two numbers per group instead of three (a number below 1e-38 M becomes 0); zeros are no
candidates for m anywhere in a group and come back as zeros; 1/16 <= k < 16, so that a group of equal magnitudes has a
power too. A group that holds an infinity or NaN comes back as NaN.
Cost: 1 byte per entry and 5 per group (1.04 bytes per entry for groups of 128); one power per entry to quantize, one
table look-up to restore, since a group's numbers are among 256 levels that depend on k alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.compress.fp8_scaling import largest
from assay.errors import InvalidInput

__all__ = ["ExpandedGroups", "dequantize_expanded", "expansion_exponent", "quantize_expanded"]

STEPS = 16  # k is a multiple of 1 / STEPS, stored as a whole number in one byte
# By format and device; a dict, since torch.compile looks through functools.cache.
_LEVELS: dict[tuple[torch.dtype, torch.device], Tensor] = {}


class ExpandedGroups(NamedTuple):
    """A tensor in FP8 with a scale and a power per group.

    Args:
        codes: FP8, the tensor's shape.
        scale: (n,) float32, each group's largest magnitude M.
        exponent: (n,) uint8, 16 k.
    """

    codes: Tensor
    scale: Tensor
    exponent: Tensor


def _groups(x: Tensor, group_size: int) -> Tensor:
    """Return x as (n, group_size), with zeros at the end where they are needed."""
    flat = x.reshape(-1)
    missing = -flat.numel() % group_size
    return (F.pad(flat, (0, missing)) if missing else flat).view(-1, group_size)


def expansion_exponent(magnitudes: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """Return k of each group: log R / log(M / m), rounded down to a multiple of 1/16, from 1/16 to 255/16.

    Args:
        magnitudes: (..., group_size), not negative; zeros are skipped.
        dtype: The FP8 format to fill.

    Returns:
        (...,) of the magnitudes' type.

    Raises:
        InvalidInput: If the type is no FP8 format.

    Example:
        >>> expansion_exponent(torch.tensor([[1.0, 2.0**4], [1.0, 2.0**8]]))
        tensor([4.1250, 2.0625])
    """
    smallest = torch.where(magnitudes > 0, magnitudes, math.inf).amin(-1)
    octaves = magnitudes.amax(-1).log2() - smallest.log2()
    # the hair above makes up for rounding of the logarithms, which would cost a whole sixteenth
    steps = torch.floor(STEPS * math.log2(largest(dtype) ** 2 / 2) / octaves + 1e-4)
    return steps.clamp(1, 255) / STEPS


def quantize_expanded(
    x: Tensor, group_size: int = 128, dtype: torch.dtype = torch.float8_e4m3fn, *, expand: bool = True
) -> ExpandedGroups:
    """Quantize a tensor in groups, each stretched to fill the format's range.

    Args:
        x: Any shape, floating point, within float32's range.
        group_size: Entries per group, at least 1.
        dtype: `torch.float8_e4m3fn` or `torch.float8_e5m2`.
        expand: False takes k = 1: plain FP8 with a scale per group.

    Returns:
        Codes of x's shape, scales and exponents (n,).

    Raises:
        InvalidInput: If x is not floating point, the group size is below 1 or the type is no FP8 format.

    Example:
        >>> x = torch.tensor([1e-4, -3e-4, 2e-3])
        >>> dequantize_expanded(quantize_expanded(x))
        tensor([ 0.0001, -0.0003,  0.0020])
    """
    if group_size < 1 or not x.is_floating_point():
        raise InvalidInput(
            f"expected a floating-point tensor and a group size of at least 1; got {x.dtype} and {group_size}"
        )
    groups = _groups(x.to(torch.promote_types(x.dtype, torch.float32)), group_size)
    magnitudes = groups.abs()
    scale = magnitudes.amax(-1).clamp_min(torch.finfo(torch.float32).tiny).to(torch.float32)
    k = expansion_exponent(magnitudes, dtype) if expand else torch.ones_like(scale)
    stretched = magnitudes.div_(scale.unsqueeze(-1))
    if expand:
        # half the time of pow_
        stretched.log2_().mul_(k.unsqueeze(-1)).exp2_()
    codes = stretched.mul_(largest(dtype)).copysign_(groups).to(dtype)
    return ExpandedGroups(codes.view(-1)[: x.numel()].view(x.shape), scale, (STEPS * k).to(torch.uint8))


def dequantize_expanded(groups: ExpandedGroups, group_size: int = 128, dtype: torch.dtype = torch.float32) -> Tensor:
    """Restore what `quantize_expanded` quantized.

    Args:
        groups: Codes, scales and exponents.
        group_size: What they were made with.
        dtype: Type of the result.

    Returns:
        Tensor of the codes' shape.
    """
    codes, scale, exponent = groups
    # float8 tensors cannot be padded or used as an index, their bytes can; byte 0 is 0.0
    cells = _groups(codes.view(torch.uint8), group_size) + exponent.to(torch.int32).unsqueeze(-1) * 256
    levels = _levels(codes.dtype, codes.device).index_select(0, cells.view(-1)).view_as(cells)
    return levels.mul_(scale.unsqueeze(-1)).view(-1)[: codes.numel()].view(codes.shape).to(dtype)


def _levels(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return sign(q) (|q| / L)^(1/k) for all 256 exponents and codes, as (65536,) float32: 256 KiB."""
    if (dtype, device) not in _LEVELS:
        codes = torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float64)
        exponents = STEPS / torch.arange(256, dtype=torch.float64).unsqueeze(-1)
        levels = (codes.abs() / largest(dtype)).pow(exponents).copysign(codes)
        _LEVELS[dtype, device] = levels.to(device, torch.float32).view(-1)
    return _LEVELS[dtype, device]
