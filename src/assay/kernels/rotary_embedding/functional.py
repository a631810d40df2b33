"""`rope` as users call it: checks and shapes around the operator."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.kernels._derivatives import refuse_forward_mode
from assay.kernels.rotary_embedding.op import rope_forward

__all__ = ["rope"]


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    r"""Turn pairs of features of queries and keys by angles that grow with the position.

    Equals Hugging Face's `apply_rotary_pos_emb`, with its arguments: feature i is paired with i + D/2, and
    $[x_1, x_2] \to [x_1 c - x_2 s,\; x_2 c + x_1 s]$. Keeps only `cos` and `sin` for backward, and computes in float32
    for half precision.

    Args:
        q: (B, N, T, D) queries, floating point, D even; (B, T, N, D) with `unsqueeze_dim=2`. Any strides.
        k: (B, M, T, D) keys, of q's type, with as many heads as they like.
        cos: (B, T, D), (1, T, D) or (T, D): cosines, of any floating-point type; get no gradient.
        sin: Sines, of the same shape.
        unsqueeze_dim: Where `cos` and `sin` lack the dimension of the heads: 1 or 2.

    Returns:
        The rotated queries and keys, of the shapes, types and strides of the given ones.

    Raises:
        InvalidInput: If shapes, types or devices don't fit, if `cos` or `sin` require a gradient, and under
            forward-mode differentiation (for both see `rope_reference`).

    Example:
        >>> q, k = torch.randn(2, 4, 5, 6), torch.randn(2, 1, 5, 6)
        >>> angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.1, 0.01])).repeat(1, 2)
        >>> turned, _ = rope(q, k, angles.cos(), angles.sin())
        >>> torch.allclose(turned.norm(dim=-1), q.norm(dim=-1))
        True
    """
    if unsqueeze_dim not in (1, 2):
        raise InvalidInput(f"rope: unsqueeze_dim must be 1 or 2, not {unsqueeze_dim}")
    cos, sin = (t.unsqueeze(0) if t.dim() == 2 else t for t in (cos, sin))
    _check(q, k, cos, sin, 3 - unsqueeze_dim)
    if unsqueeze_dim == 1:
        rotated_q, rotated_k = rope_forward(q, k, cos, sin)
        return rotated_q, rotated_k
    rotated_q, rotated_k = rope_forward(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    return rotated_q.transpose(1, 2), rotated_k.transpose(1, 2)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, length_dim: int) -> None:
    layout = "(B, heads, T, D)" if length_dim == 2 else "(B, T, heads, D)"
    for what, tensor in (("q", q), ("k", k)):
        if not tensor.is_floating_point() or tensor.dim() != 4 or tensor.shape[-1] % 2:
            got = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise InvalidInput(f"rope: {what} must be floating point of shape {layout} with D even, not {got}")
    (batch, length, features), heads_dim = (q.shape[0], q.shape[length_dim], q.shape[3]), 3 - length_dim
    fitting = [k.shape[d] == q.shape[d] for d in range(4) if d != heads_dim]
    if not all(fitting) or k.dtype != q.dtype:
        raise InvalidInput(
            f"rope: q and k must have one type and, apart from the heads, one shape {layout}, not {q.dtype} "
            f"{tuple(q.shape)} and {k.dtype} {tuple(k.shape)}"
        )
    for what, tensor in (("cos", cos), ("sin", sin)):
        if tuple(tensor.shape) not in ((1, length, features), (batch, length, features)) or tensor.shape != cos.shape:
            expected = f"({batch} or 1, {length}, {features}) or ({length}, {features}), both alike"
            raise InvalidInput(f"rope: cos and sin must have shape {expected}; {what} has {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise InvalidInput(f"rope: {what} must be floating point, not {tensor.dtype}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise InvalidInput(f"rope: {what} would get no gradient; detach it, or use assay.kernels.rope_reference")
    for what, tensor in (("k", k), ("cos", cos), ("sin", sin)):
        if tensor.device != q.device:
            raise InvalidInput(f"rope: {what} is on {tensor.device} but q is on {q.device}")
    refuse_forward_mode("rope", q, k, cos, sin)
