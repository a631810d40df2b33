"""Rotary position embedding on any device, a block of tokens at a time.

Source: Su et al., "RoFormer" (arXiv:2104.09864); Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, RoPE, in
Hugging Face's form: the halves x₁, x₂ of a head's features turn by an angle with cosine c and sine s,

    [x₁, x₂] → [x₁ c₁ - x₂ s₁, x₂ c₂ + x₁ s₂],

where usually c₁ = c₂ and s₁ = s₂. The transpose, which backward needs, has the same form with [-s₂, -s₁] for [s₁, s₂]:
nothing of x has to be kept.

Shapes: B batch, N heads, T tokens, D features of a head; x (B, N, T, D), cos and sin (1 or B, T, D).

Departures. The result is a new tensor, not x overwritten, so that x may have other users. The halves' cosines and
sines may differ. Products and sums are float32 for half precision, rounded once.

Cost: one reading of x and one writing of the result; two blocks of float32 that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from assay.kernels._row_blocks import row_blocks, working_dtype

__all__ = ["inverse_sine", "rope_blocked"]


def inverse_sine(sin: Tensor) -> Tensor:
    """Return the sines (..., D) of the transposed rotation."""
    first, second = sin.chunk(2, -1)
    return torch.cat((-second, -first), -1)


def rope_blocked(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (B, N, T, D) rotated by angles with cosines and sines (1 or B, T, D), with x's strides."""
    working, half = working_dtype(x.dtype), x.shape[-1] // 2
    rotated = torch.empty_like(x)
    cos = cos.to(working).unsqueeze(1)
    signed = torch.cat((-sin[..., :half], sin[..., half:]), -1).to(working).unsqueeze(1)
    blocks = list(_token_blocks(x))
    scratch = [torch.empty_like(x[batch, :, tokens], dtype=working) for batch, tokens in blocks[:1] for _ in range(2)]
    for batch, tokens in blocks:
        given, place = x[batch, :, tokens], batch if cos.shape[0] > 1 else slice(None)
        values, swapped = (buffer[: given.shape[0], :, : given.shape[2]] for buffer in scratch)
        values.copy_(given)
        swapped[..., :half], swapped[..., half:] = values[..., half:], values[..., :half]
        values.mul_(cos[place, :, tokens]).addcmul_(swapped, signed[place, :, tokens])
        rotated[batch, :, tokens] = values
    return rotated


def _token_blocks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of batch and tokens that cover x: several short sequences at once, or parts of a long one."""
    batch, heads, length, features = x.shape
    for sequences in row_blocks(batch, heads * length * features, x.device):
        if sequences.stop - sequences.start > 1:
            yield sequences, slice(0, length)
        else:
            yield from ((sequences, tokens) for tokens in row_blocks(length, heads * features, x.device))
