"""The embedding as PyTorch operators: with shapes for the compiler and formulas for autograd.

Saved for backward: the words.

Shapes: T tokens, V words, H features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.kernels._derivatives import differentiable_gradients
from assay.kernels._launch import runs_triton
from assay.kernels.token_embedding.reference import embedding_reference
from assay.kernels.token_embedding.segments import embedding_gradient

__all__ = ["embedding_backward", "embedding_forward"]


@torch.library.custom_op("assay::embedding", mutates_args=())
def embedding_forward(input: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Return the rows (T, H) of weight (V, H) that the words (T,) name; padding -1 for none."""
    if input.device.type == "cpu" and input.numel() and not 0 <= input.min() <= input.max() < len(weight):
        low, high = input.min().item(), input.max().item()
        raise InvalidInput(f"embedding: words must lie in [0, {len(weight)}), but they range from {low} to {high}")
    return weight.index_select(0, input)


@embedding_forward.register_fake
def _(input: Tensor, weight: Tensor, padding: int) -> Tensor:
    return weight.new_empty(input.shape[0], weight.shape[1])


@torch.library.custom_op("assay::embedding_backward", mutates_args=())
def embedding_backward(dy: Tensor, input: Tensor, words: int, padding: int) -> Tensor:
    """Return dW (V, H) of dy (T, H)."""
    if runs_triton(dy):
        from assay.kernels.token_embedding.triton_kernel import embedding_gradient_triton

        return embedding_gradient_triton(dy, input, words, padding)
    return embedding_gradient(dy, input, words, padding)


@embedding_backward.register_fake
def _(dy: Tensor, input: Tensor, words: int, padding: int) -> Tensor:
    return dy.new_empty(words, dy.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, ctx.padding = inputs
    ctx.shape, ctx.dtype = weight.shape, weight.dtype
    ctx.save_for_backward(input)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (input,) = ctx.saved_tensors
    if torch.is_grad_enabled():
        # The value of the weight does not matter: the embedding is linear in it.
        weight = torch.zeros(ctx.shape, dtype=ctx.dtype, device=dy.device, requires_grad=True)
        padding = None if ctx.padding < 0 else ctx.padding

        def plain(w: Tensor) -> Tensor:
            return embedding_reference(input, w, padding)

        return None, *differentiable_gradients(plain, (weight,), (True,), dy), None
    return None, embedding_backward(dy, input, ctx.shape[0], ctx.padding), None


embedding_forward.register_autograd(_gradients, setup_context=_save)
