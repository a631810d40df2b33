"""Exact nearest neighbours by inner product, without the matrix of all pairs.

Paper: "Rethinking Supervised Pre-training for Better Downstream Transferring" (arXiv:2110.06014), whose loss asks for
the k nearest neighbours of each sample, itself left out.

    N_k(i) = the k largest <q_i, b_j> over j with id_j != id_i

Shapes: B queries q and N keys b of D features; ids (B,) and (N,), where a key's id of -1 marks an empty slot.

A key with the query's own id never counts: a stale copy of a sample would be its own nearest neighbour. Of keys equally
near, the lower position wins, as in a stable sort. The search is an operator of its own (`assay::nearest_neighbours`),
so that `torch.compile` and `torch.vmap` take it whole; it has no gradient (`assay.nn.neighbour_similarities` has).

Cost: B N D multiply-adds and a partial sort of each row, in blocks of at most `BLOCK` similarities.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["nearest_neighbours", "nearest_of_class"]

BLOCK = 2**21  # numbers in a block of similarities: 8 MB in float32


def _blocks(
    queries: Tensor, keys: Tensor, query_ids: Tensor | None, key_ids: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of queries and their similarities (rows, N), minus infinity where a key does not count."""
    rows = max(1, BLOCK // max(1, len(keys)))
    empty = key_ids < 0 if key_ids is not None and bool((key_ids < 0).any()) else None
    for start in range(0, len(queries), rows):
        chosen = slice(start, start + rows)
        similarities = queries[chosen] @ keys.T
        if key_ids is not None and query_ids is not None:
            similarities.masked_fill_(query_ids[chosen, None] == key_ids, -torch.inf)
        if empty is not None:
            similarities.masked_fill_(empty, -torch.inf)
        yield chosen, similarities


def _lower_positions(similarities: Tensor, kth: Tensor, k: int) -> Tensor:
    """Return the indices (rows, k) of the k largest where several equal the k-th: those at lower positions."""
    larger, equal = similarities > kth, similarities == kth
    chosen = larger | (equal & (equal.cumsum(dim=1) <= k - larger.sum(dim=1, keepdim=True)))
    positions = chosen.nonzero()[:, 1].view(len(similarities), k)
    order = similarities.gather(1, positions).argsort(dim=1, descending=True, stable=True)
    return positions.gather(1, order)


def _largest(similarities: Tensor, k: int) -> Tensor:
    """Return the indices (rows, k) of the k largest, in order, ties by position."""
    # One more than asked for shows whether the k-th is tied with one left out.
    values, positions = similarities.topk(min(k + 1, similarities.shape[1]), dim=1)
    missing = values[:, k - 1] == -torch.inf
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1) & ~values.isnan().any(dim=1)
    positions = positions[:, :k]
    if bool((missing | tied).any()):
        if bool(missing.any()):
            there = int((similarities[missing.nonzero()[0, 0]] > -torch.inf).sum())
            raise InvalidInput(
                f"k = {k}, but a query has only {there} neighbours among {similarities.shape[1]} keys (empty slots and "
                "its own keys do not count); lower k or fill the bank first"
            )
        positions[tied] = _lower_positions(similarities[tied], values[tied, k - 1 : k], k)
    return positions


@torch.library.custom_op("assay::nearest_neighbours", mutates_args=())
def _search(queries: Tensor, keys: Tensor, query_ids: Tensor | None, key_ids: Tensor | None, k: int) -> Tensor:
    found = torch.empty(len(queries), k, dtype=torch.long, device=queries.device)
    for rows, similarities in _blocks(queries, keys, query_ids, key_ids):
        found[rows] = _largest(similarities, k)
    return found


@torch.library.custom_op("assay::nearest_of_class", mutates_args=())
def _search_class(
    queries: Tensor,
    targets: Tensor,
    keys: Tensor,
    key_targets: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    wanted: Tensor,
) -> Tensor:
    found = torch.full((len(queries),), -1, dtype=torch.long, device=queries.device)
    rows = wanted.nonzero()[:, 0]
    ids = None if query_ids is None else query_ids[rows]
    for block, similarities in _blocks(queries[rows], keys, ids, key_ids):
        similarities.masked_fill_(targets[rows[block], None] != key_targets, -torch.inf)
        largest, positions = similarities.max(dim=1)
        found[rows[block]] = torch.where(largest == -torch.inf, -1, positions)
    return found


@_search.register_fake
def _(queries: Tensor, keys: Tensor, query_ids: Tensor | None, key_ids: Tensor | None, k: int) -> Tensor:
    return queries.new_empty(len(queries), k, dtype=torch.long)


@_search_class.register_fake
def _(queries: Tensor, *rest: Any) -> Tensor:
    return queries.new_empty(len(queries), dtype=torch.long)


def _one_by_one(operator: Any) -> Any:
    """Return the vmap rule of an operator: run it once per entry of the mapped axis."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        mapped = [a if dim is None else a.movedim(dim, 0) for a, dim in zip(arguments, in_dims, strict=True)]
        each = [
            operator(*(a if dim is None else a[i] for a, dim in zip(mapped, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return torch.stack(each), 0

    return rule


_search.register_vmap(_one_by_one(_search))
_search_class.register_vmap(_one_by_one(_search_class))


def check_pairs(queries: Tensor, keys: Tensor, query_ids: Tensor | None = None, key_ids: Tensor | None = None) -> None:
    """Refuse queries, keys and ids that do not fit together.

    Raises:
        InvalidInput: If so.
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise InvalidInput(
            f"queries and keys must be (B, D) and (N, D) with one D; got {tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    if not queries.dtype == keys.dtype or not queries.is_floating_point():
        raise InvalidInput(f"queries and keys must share one floating type; got {queries.dtype} and {keys.dtype}")
    for name, ids, owners in (("query_ids", query_ids, queries), ("key_ids", key_ids, keys)):
        if ids is not None and (ids.shape != owners.shape[:1] or ids.is_floating_point()):
            raise InvalidInput(f"{name} must be integers ({len(owners)},); got {ids.dtype} {tuple(ids.shape)}")


def nearest_neighbours(
    queries: Tensor, keys: Tensor, k: int, *, query_ids: Tensor | None = None, key_ids: Tensor | None = None
) -> Tensor:
    """Return the positions of the k keys nearest to each query, by inner product.

    Args:
        queries: (B, D); unit rows make it cosine similarity.
        keys: (N, D).
        k: How many, 1 or more.
        query_ids: Whose sample a query is (B,); keys of the same id are left out.
        key_ids: Whose sample a key is (N,); negative for empty slots, which never count.

    Returns:
        int64 (B, k), the nearest first; of keys equally near, the one at the lower position.

    Raises:
        InvalidInput: If shapes or types do not fit, or a query has fewer than k neighbours.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
        >>> nearest_neighbours(points, points, 2, query_ids=torch.arange(4), key_ids=torch.arange(4)).tolist()
        [[2, 1], [2, 3], [1, 0], [1, 2]]
    """
    check_pairs(queries, keys, query_ids, key_ids)
    if not 1 <= k <= len(keys):
        raise InvalidInput(f"k must be from 1 to the number of keys, {len(keys)}; got {k}")
    return _search(queries.detach(), keys.detach(), query_ids, key_ids, k)


def nearest_of_class(
    queries: Tensor,
    targets: Tensor,
    keys: Tensor,
    key_targets: Tensor,
    *,
    wanted: Tensor,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
) -> Tensor:
    """Return the position of the nearest key that has the query's label, for the queries that want one.

    Args:
        queries: (B, D).
        targets: Labels (B,).
        keys: (N, D).
        key_targets: Labels (N,).
        wanted: Boolean (B,); the others are not searched for, which costs nothing.
        query_ids: As in `nearest_neighbours`.
        key_ids: As in `nearest_neighbours`.

    Returns:
        int64 (B,); -1 where none was wanted or there is none, as in a class with a single sample.

    Raises:
        InvalidInput: If shapes or types do not fit.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
        >>> y, ids = torch.tensor([0, 0, 1]), torch.arange(3)
        >>> nearest_of_class(points, y, points, y, wanted=ids >= 0, query_ids=ids, key_ids=ids).tolist()
        [1, 0, -1]
    """
    check_pairs(queries, keys, query_ids, key_ids)
    if targets.shape != queries.shape[:1] or key_targets.shape != keys.shape[:1]:
        raise InvalidInput(
            f"expected a label per query and per key, ({len(queries)},) and ({len(keys)},); got "
            f"{tuple(targets.shape)} and {tuple(key_targets.shape)}"
        )
    return _search_class(queries.detach(), targets, keys.detach(), key_targets, query_ids, key_ids, wanted)
