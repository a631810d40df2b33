"""FP8 codes with scales: one scale per tensor or one per group, with group scaling for the tensor's maximum.

Paper: "COAT: Compressing Optimizer States and Activations for Memory-Efficient FP8 Training" (arXiv:2410.19313), mixed
granularity and group scaling. With L the format's largest number (448 for E4M3, 57344 for E5M2) and S the scale:

    S = max|x| / L,    q = fp8(x / S),    x ~ S q

Shapes: x (..., d). Groups are `group_size` consecutive entries of the last dimension, the last one perhaps shorter:
n = ceil(d / group_size) of them in each row. Group scaling takes the maximum in two stages, first over each group, then
over the groups' maxima; both give the same number.

Departures: where the official code adds 1e-10 to the maximum so that zeros have a scale, we take the smallest normal
number as the least scale, so that gradients far below 1e-10 keep their digits. A tensor or group that holds an
infinity or NaN comes back as NaN, so that loss scaling sees it.
Cost: one byte per entry, 2 bytes per group (4 per tensor); one float32 temporary of x's size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["dequantize", "group_maxima", "largest", "quantize_per_group", "quantize_per_tensor"]

FORMATS = (torch.float8_e4m3fn, torch.float8_e5m2)


def largest(dtype: torch.dtype) -> float:
    """Return the largest number of an FP8 format.

    Args:
        dtype: `torch.float8_e4m3fn` or `torch.float8_e5m2`.

    Raises:
        InvalidInput: On any other type.

    Example:
        >>> largest(torch.float8_e4m3fn), largest(torch.float8_e5m2)
        (448.0, 57344.0)
    """
    if dtype not in FORMATS:
        raise InvalidInput(f"expected torch.float8_e4m3fn or torch.float8_e5m2, got {dtype}")
    return torch.finfo(dtype).max


def _grouped(x: Tensor, group_size: int) -> Tensor:
    """Return x as (..., n, group_size), with zeros at the end of each row where they are needed."""
    if group_size < 1 or x.dim() < 1 or not x.is_floating_point():
        raise InvalidInput(
            f"groups need a floating-point tensor with a last dimension and a group size of at least 1; "
            f"got {x.dtype} of shape {tuple(x.shape)} and group size {group_size}"
        )
    missing = -x.shape[-1] % group_size
    padded = F.pad(x, (0, missing)) if missing else x
    return padded.unflatten(-1, (padded.shape[-1] // group_size, group_size))


def group_maxima(x: Tensor, group_size: int) -> Tensor:
    """Return the largest magnitude of each group, the first stage of group scaling.

    Args:
        x: (..., d), floating point.
        group_size: Entries per group, at least 1.

    Returns:
        (..., n) of x's type.

    Raises:
        InvalidInput: If x has no last dimension or is not floating point, or the group size is below 1.

    Example:
        >>> group_maxima(torch.tensor([1.0, -3.0, 2.0]), 2)
        tensor([3., 2.])
    """
    return _grouped(x, group_size).abs().amax(-1)


def _scale(maxima: Tensor, dtype: torch.dtype, scale_dtype: torch.dtype) -> Tensor:
    scale = maxima.to(torch.float32) / largest(dtype)
    return scale.clamp_min(torch.finfo(torch.float32).tiny).to(scale_dtype)


def quantize_per_tensor(
    x: Tensor, dtype: torch.dtype = torch.float8_e4m3fn, *, group_size: int = 16
) -> tuple[Tensor, Tensor]:
    """Return FP8 codes with one scale, what a matrix product can be computed on.

    Args:
        x: (..., d), floating point.
        dtype: `torch.float8_e4m3fn` for weights and activations, `torch.float8_e5m2` for gradients.
        group_size: Groups of the first stage of group scaling; it changes no result.

    Returns:
        Codes (..., d) and the scale, a float32 scalar.

    Raises:
        InvalidInput: If x is not floating point or has no last dimension, or the type is no FP8 format.

    Example:
        >>> codes, scale = quantize_per_tensor(torch.tensor([896.0, 1.0, 0.001]))
        >>> codes.float(), scale
        (tensor([448.0000,   0.5000,   0.0000]), tensor(2.))
    """
    maxima = group_maxima(x, group_size)
    scale = _scale(maxima.amax() if maxima.numel() else maxima.new_zeros(()), dtype, torch.float32)
    return (x / scale.to(_working(x))).to(dtype), scale


def quantize_per_group(
    x: Tensor, group_size: int = 16, dtype: torch.dtype = torch.float8_e4m3fn, scale_dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    """Return FP8 codes with a scale for each group, for tensors that a non-linear layer reads.

    Args:
        x: (..., d), floating point.
        group_size: Entries per group, at least 1; the paper's is 16.
        dtype: `torch.float8_e4m3fn` or `torch.float8_e5m2`.
        scale_dtype: The scales' type; bfloat16 has float32's range, and its rounding moves the codes, not the values.

    Returns:
        Codes (..., d) and scales (..., n).

    Raises:
        InvalidInput: As `group_maxima`, or if the type is no FP8 format.
    """
    groups = _grouped(x, group_size)
    scale = _scale(groups.abs().amax(-1), dtype, scale_dtype)
    codes = (groups / scale.to(_working(x)).unsqueeze(-1)).to(dtype)
    return codes.flatten(-2)[..., : x.shape[-1]].contiguous(), scale


def dequantize(
    codes: Tensor, scale: Tensor, group_size: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the numbers that codes and scales stand for.

    Args:
        codes: (..., d), FP8.
        scale: A scalar, or (..., n) for groups.
        group_size: None for one scale, else what the codes were made with.
        dtype: Type of the result; the product is rounded once.

    Returns:
        (..., d).
    """
    working = torch.promote_types(dtype, torch.float32)
    if group_size is None:
        return codes.to(working).mul_(scale).to(dtype)
    groups = _grouped(codes.to(working), group_size)
    values = groups * scale.to(working).unsqueeze(-1)
    return values.flatten(-2)[..., : codes.shape[-1]].to(dtype)


def _working(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
