"""The gradient of an embedding in Triton: a program per word that occurs and block of features.

Source: the embedding of Liger's official code; formula and departure in `segments`. Tokens are sorted by word (torch),
so each program sums its own segment in registers and writes its own row: no atomics, the same result on every run.

Shapes: T tokens, U different words among them, H features; dy (T, H), order (T,), first (U + 1,), word (U,),
dW (V, H).

Checked in Triton's interpreter and compiled ahead of time; never timed on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.kernels._ahead_of_time import Compilation
from assay.kernels._launch import next_power_of_two

__all__ = ["ahead_of_time", "embedding_gradient_triton"]

LONGEST_BLOCK = 1024


@triton.jit
def _sum_segments(dy, order, first, word, gradient, features, padding, BLOCK: tl.constexpr):
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < features
    row = tl.load(word + segment)
    if row != padding:
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for place in range(tl.load(first + segment), tl.load(first + segment + 1)):
            token = tl.load(order + place)
            total += tl.load(dy + token * features + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(gradient + row * features + column, total, mask=inside)


def embedding_gradient_triton(dy: Tensor, input: Tensor, words: int, padding: int) -> Tensor:
    """Return dW (V, H), as `embedding_gradient` does."""
    dy = dy.contiguous()
    tokens, features = dy.shape
    gradient = dy.new_zeros(words, features)
    if tokens and features:
        ordered, order = input.sort(stable=True)
        word, counts = ordered.unique_consecutive(return_counts=True)
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        block = min(next_power_of_two(features), LONGEST_BLOCK)
        grid = (len(word), -(-features // block))
        _sum_segments[grid](dy, order, first, word, gradient, features, padding, block, num_warps=4)
    return gradient


def ahead_of_time() -> list[Compilation]:
    """Return typical settings of the kernel, to be compiled without a GPU."""
    found = []
    for dtype in ("bf16", "fp32"):
        types = {"dy": f"*{dtype}", **dict.fromkeys(("order", "first", "word"), "*i64"), "gradient": f"*{dtype}"}
        types |= {"features": "i32", "padding": "i32"}
        constants = {"BLOCK": LONGEST_BLOCK}
        name = f"embedding backward {dtype} {LONGEST_BLOCK}"
        found.append(Compilation(name, _sum_segments, types, constants, divisible=("features",)))
    return found
