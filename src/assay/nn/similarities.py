"""Similarities of queries with a few chosen keys, with gradients in both, without the matrix of all pairs.

Paper: "Rethinking Supervised Pre-training for Better Downstream Transferring" (arXiv:2110.06014), whose loss
differentiates the similarities of each sample with its k nearest neighbours, the choice held fixed.

    s_ij = <q_i, b_j>,  j in J(i)

Shapes: B queries q and N keys b of D features; chosen positions J (B, k).

Departures: none. Cost: forward B k D multiply-adds, backward as many per argument, where a row's k chosen keys (k D
numbers) are fewer than its N similarities; else B N D in matrix products. Memory beyond inputs and results is a block
of `BLOCK` numbers, since neither the chosen keys (B, k, D) nor the matrix (B, N) is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.nn.neighbours import BLOCK, check_pairs

__all__ = ["neighbour_similarities"]


def neighbour_similarities(queries: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
    """Return the inner products of queries with chosen keys; differentiable, twice, by queries and keys.

    Args:
        queries: (B, D).
        keys: (N, D).
        positions: Which keys (B, k), each at most once per query.

    Returns:
        (B, k).

    Raises:
        InvalidInput: If shapes or types do not fit.

    Example:
        >>> neighbour_similarities(torch.ones(1, 2), torch.eye(2), torch.tensor([[1, 0]]))
        tensor([[1., 1.]])
    """
    check_pairs(queries, keys)
    result: Tensor = _Similarities.apply(queries, keys, positions)
    return result


class _Similarities(torch.autograd.Function):
    """<q_i, b_j> of chosen pairs, which keeps neither the chosen keys (B, k, D) nor the matrix (B, N)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(queries: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        parts = _rows(queries, keys, positions)
        return torch.cat([_products(q, keys, j) for q, j in parts])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        queries, keys, positions = ctx.saved_tensors
        of_queries: list[Tensor] = []
        of_keys = torch.zeros_like(keys) if ctx.needs_input_grad[1] else None
        parts = _rows(queries, keys, positions)
        for (q, j), g in zip(parts, gradient.split(max(1, len(parts[0][0]))), strict=True):
            if ctx.needs_input_grad[0]:
                of_queries.append(_sum_of_keys(g, keys, j))
            if of_keys is not None:
                of_keys = of_keys + _sum_of_queries(g, q, keys, j)
        return (torch.cat(of_queries) if of_queries else None), of_keys, None


def _rows(queries: Tensor, keys: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
    rows = max(1, BLOCK // max(1, min(len(keys), positions.shape[1] * keys.shape[1])))
    return list(zip(queries.split(rows), positions.split(rows), strict=True))


def _dense(keys: Tensor, positions: Tensor) -> bool:
    """Whether all N similarities of a query are fewer numbers than its k chosen keys."""
    return positions.shape[1] * keys.shape[1] > len(keys)


def _products(q: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
    if _dense(keys, positions):
        return (q @ keys.T).gather(1, positions)
    return torch.einsum("bd,bkd->bk", q, keys[positions])


def _sum_of_keys(weights: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
    """Return sum_k w_ik b_j(i,k), shape (rows, D)."""
    if _dense(keys, positions):
        return _matrix(weights, keys, positions) @ keys
    return torch.einsum("bk,bkd->bd", weights, keys[positions])


def _sum_of_queries(weights: Tensor, q: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
    """Return, for each key, the sum of w_ik q_i over the queries that chose it, shape (N, D)."""
    if _dense(keys, positions):
        return _matrix(weights, keys, positions).T @ q
    pairs = (weights[:, :, None] * q[:, None, :]).flatten(0, 1)
    return torch.zeros_like(keys).index_add(0, positions.flatten(), pairs)


def _matrix(weights: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
    return weights.new_zeros(len(weights), len(keys)).scatter(1, positions, weights)
