"""Checks of what normalisations over the last dimensions take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["check_trailing"]


def check_trailing(
    name: str, input: Tensor, normalized_shape: int | Sequence[int], parameters: Mapping[str, Tensor | None]
) -> tuple[int, ...]:
    """Return the normalised dimensions as a tuple, if input and parameters fit them.

    Args:
        name: The operation, for messages.
        input: (..., *normalized_shape).
        normalized_shape: One or several last dimensions.
        parameters: By name; of shape `normalized_shape`, or None.

    Raises:
        InvalidInput: Naming what does not fit.
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not input.is_floating_point():
        raise InvalidInput(f"{name}: input must be floating point, not {input.dtype}")
    if not shape or tuple(input.shape[-len(shape) :]) != shape:
        expected = f"(..., {', '.join(map(str, shape))})" if shape else "one with at least one normalised dimension"
        raise InvalidInput(f"{name}: input must have shape {expected}, not {tuple(input.shape)}")
    for what, tensor in parameters.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise InvalidInput(f"{name}: {what} must have shape {shape}, not {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise InvalidInput(f"{name}: {what} must be floating point, not {tensor.dtype}")
        if tensor.device != input.device:
            raise InvalidInput(f"{name}: {what} is on {tensor.device} but input is on {input.device}")
    return shape
