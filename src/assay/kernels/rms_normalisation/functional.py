"""`rms_norm` as users call it: checks and shapes around the operator; and as a module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.kernels._derivatives import refuse_forward_mode
from assay.kernels._row_blocks import working_dtype
from assay.kernels._trailing_shape import check_trailing
from assay.kernels.rms_normalisation.op import rms_norm_forward
from assay.kernels.rms_normalisation.reference import CASTINGS

__all__ = ["RMSNorm", "rms_norm"]


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    offset: float = 0.0,
    casting: str = "llama",
) -> Tensor:
    r"""Divide by the root mean square of the last dimensions, and scale.

    $y = x\,r \odot (w + o)$ with $r = (\overline{x^2} + \varepsilon)^{-1/2}$, the mean over `normalized_shape`. Equals
    Hugging Face's `LlamaRMSNorm` and `GemmaRMSNorm` with the castings named after them, and `F.rms_norm` with that of
    "gemma", at a fraction of what they keep for backward: the input itself and one number per row.

    Args:
        input: (..., *normalized_shape), floating point.
        normalized_shape: The last dimensions, over which the mean is taken.
        weight: w of shape `normalized_shape`, or None for none; of any floating-point type.
        eps: ε, finite and at least 0; by default the spacing at 1 of float32 (float64 for such input), as in
            `F.rms_norm`.
        offset: o, added to the weight: 0 in Llama, 1 in Gemma, whose weights are stored as differences from 1.
        casting: What is rounded to the input's type on the way in half precision. "llama": x r, before the product with
            the weight; "gemma": only the result; "none": r, x r and the result, as if nothing had been cast up (but the
            mean square is float32, so that it can't overflow).

    Returns:
        A tensor of the input's shape. Its type is the input's for "gemma"; otherwise the promoted one of input and
        weight, as in the models that the castings are named after.

    Raises:
        InvalidInput: If shapes, types, devices or options don't fit, and under forward-mode differentiation.

    Example:
        >>> x, weight = torch.randn(2, 5, 8), torch.ones(8)
        >>> torch.allclose(rms_norm(x, (8,), weight), torch.nn.functional.rms_norm(x, (8,), weight), atol=1e-6)
        True
    """
    shape = check_trailing("rms_norm", input, normalized_shape, {"weight": weight})
    eps = torch.finfo(working_dtype(input.dtype)).eps if eps is None else float(eps)
    _check_options(eps, offset, casting)
    refuse_forward_mode("rms_norm", input, weight)
    columns = math.prod(shape)
    rows = input.reshape(math.prod(input.shape[: input.dim() - len(shape)]), columns)
    flat = None if weight is None else weight.reshape(columns)
    return rms_norm_forward(rows, flat, eps, float(offset), casting)[0].view(input.shape)


def _check_options(eps: float | None, offset: float, casting: str) -> None:
    if eps is not None and not 0.0 <= eps < math.inf:
        raise InvalidInput(f"rms_norm: eps must be finite and at least 0, not {eps}")
    if not math.isfinite(offset):
        raise InvalidInput(f"rms_norm: offset must be finite, not {offset}")
    if casting not in CASTINGS:
        raise InvalidInput(f"rms_norm: casting must be one of {', '.join(CASTINGS)}, not {casting!r}")


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` on `rms_norm`: the same arguments, parameters and state dict, and two options more.

    Args:
        normalized_shape: The last dimensions, over which the mean is taken.
        eps: Finite and at least 0, or None for that of `rms_norm`.
        elementwise_affine: Whether there is a weight. It begins as `1 - offset`, so that the scale begins as 1.
        device: Of the weight.
        dtype: Of the weight.
        offset: Added to the weight: 0 in Llama, 1 in Gemma.
        casting: "llama", "gemma" or "none", as in `rms_norm`.

    Raises:
        InvalidInput: If an option is out of range.

    Example:
        >>> RMSNorm(8, eps=1e-6, offset=1.0, casting="gemma")(torch.randn(2, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        offset: float = 0.0,
        casting: str = "llama",
    ) -> None:
        _check_options(eps, offset, casting)
        self.offset, self.casting = offset, casting
        shape = normalized_shape if isinstance(normalized_shape, int) else list(normalized_shape)
        super().__init__(shape, eps, elementwise_affine, device, dtype)

    def reset_parameters(self) -> None:
        """Set the weight so that the scale is 1."""
        if self.elementwise_affine:
            nn.init.constant_(self.weight, 1.0 - self.offset)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input, (..., *normalized_shape)."""
        return rms_norm(x, self.normalized_shape, self.weight, self.eps, offset=self.offset, casting=self.casting)

    def extra_repr(self) -> str:
        """Return the options."""
        return f"{super().extra_repr()}, offset={self.offset}, casting={self.casting!r}"
