"""`embedding` as users call it: checks and shapes around the operator; and as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.kernels._derivatives import refuse_forward_mode
from assay.kernels.token_embedding.op import embedding_forward

__all__ = ["Embedding", "embedding"]


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Look up rows of a table; sum their gradients in float32, always in the same order.

    Takes the arguments of `F.embedding` and returns the same. `max_norm`, `scale_grad_by_freq` and `sparse` are not
    offered.

    Args:
        input: (...), integer words in [0, V).
        weight: (V, H), floating point.
        padding_idx: A word whose row gets no gradient; negative ones count from the end.

    Returns:
        (..., H), in the weight's type.

    Raises:
        InvalidInput: If shapes or types don't fit, a word is out of range (checked on CPUs only: elsewhere it would
            stop the device), or under forward-mode differentiation.

    Example:
        >>> import torch
        >>> embedding(torch.tensor([[2, 0]]), torch.eye(3))
        tensor([[[0., 0., 1.],
                 [1., 0., 0.]]])
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise InvalidInput(f"embedding: weight must be floating point (V, H), not {weight.dtype} {tuple(weight.shape)}")
    if input.dtype not in (torch.int64, torch.int32):
        raise InvalidInput(f"embedding: input must be int64 or int32, not {input.dtype}")
    if input.device != weight.device:
        raise InvalidInput(f"embedding: weight is on {weight.device} but input is on {input.device}")
    padding = -1
    if padding_idx is not None:
        if not -len(weight) <= padding_idx < len(weight):
            raise InvalidInput(f"embedding: padding_idx must name one of the {len(weight)} words, not {padding_idx}")
        padding = padding_idx % len(weight)
    refuse_forward_mode("embedding", weight)
    rows = embedding_forward(input.reshape(-1).long(), weight, padding)
    return rows.view(*input.shape, weight.shape[1])


class Embedding(nn.Embedding):
    """`torch.nn.Embedding` on `embedding`: the same parameters and state dict.

    Raises:
        InvalidInput: If `max_norm`, `scale_grad_by_freq` or `sparse` is asked for.

    Example:
        >>> import torch
        >>> Embedding(10, 4)(torch.tensor([1, 2])).shape
        torch.Size([2, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows (..., H) that the words name."""
        if self.max_norm is not None or self.scale_grad_by_freq or self.sparse:
            raise InvalidInput("Embedding has no max_norm, scale_grad_by_freq or sparse; use torch.nn.Embedding")
        return embedding(input, self.weight, self.padding_idx)
