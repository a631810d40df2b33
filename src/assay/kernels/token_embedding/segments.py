"""The gradient of an embedding as sums over segments: each word's tokens, one after the other.

Source: the embedding of Liger's official code, which adds every token's gradient to its word's row by atomics.

    dW[v] = Σ_{t : i_t = v, v not the padding} dy_t

Shapes: dy (T, H), i (T,), dW (V, H); U different words among the T tokens.

Departure. Atomics add in an order that differs from run to run, in the weight's type: a word that occurs a thousand
times in a batch of bfloat16 loses most of them, since 256 + 1 = 256 there. Here tokens are sorted by word, and each
word's gradients are summed in float32 and rounded once.

Cost: one reading of dy. Memory beyond the gradient: for half precision 4 U H bytes, float32 and float64 nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.kernels._row_blocks import row_blocks, working_dtype

__all__ = ["embedding_gradient"]


def embedding_gradient(dy: Tensor, input: Tensor, words: int, padding: int) -> Tensor:
    """Return dW (V, H) in dy's type.

    Args:
        dy: (T, H), the gradient by the rows.
        input: (T,), int64 words in [0, V).
        words: V.
        padding: The word without gradient; -1 for none.
    """
    total = working_dtype(dy.dtype)
    if total == dy.dtype:
        return torch.ops.aten.embedding_dense_backward(dy, input, words, padding, False)
    gradient = dy.new_zeros(words, dy.shape[1])
    present, place = input.unique(return_inverse=True)
    sums = dy.new_zeros(len(present), dy.shape[1], dtype=total)
    for block in row_blocks(len(dy), dy.shape[1], dy.device):
        sums.index_add_(0, place[block], dy[block].to(total))
    gradient[present] = sums.to(dy.dtype)
    if padding >= 0:
        gradient[padding] = 0
    return gradient
