"""Nearest neighbours against scikit-learn and a stable sort: own keys, empty slots, ties, blocks and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from assay.nn import neighbours
from assay.nn.neighbours import nearest_neighbours, nearest_of_class


def points(n: int, d: int, seed: int = 0) -> Tensor:
    """Gaussian points of unit length, float64."""
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(z, dim=1)


def by_sorting(q: Tensor, b: Tensor, k: int, query_ids: Tensor, key_ids: Tensor) -> list[list[int]]:
    """The definition, one query at a time with Python's stable sort."""
    similarities = (q @ b.T).tolist()
    result = []
    for i, row in enumerate(similarities):
        there = [j for j in range(len(b)) if key_ids[j] != query_ids[i] and key_ids[j] >= 0]
        result.append(sorted(there, key=lambda j: -row[j])[:k])
    return result


def test_leave_one_out_is_scikit_learns() -> None:
    """The neighbours of a sample would not be its nearest, or would include itself."""
    z, ids = points(300, 8), torch.arange(300)
    expected = NearestNeighbors(n_neighbors=7, algorithm="brute", metric="cosine").fit(z.numpy())
    _, indices = expected.kneighbors()  # without arguments it leaves the sample itself out
    assert np.array_equal(nearest_neighbours(z, z, 7, query_ids=ids, key_ids=ids).numpy(), indices)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 9), levels=st.integers(1, 4), block=st.sampled_from([1, 30, 10**6]))
@settings(max_examples=30, deadline=None)
def test_ties_are_decided_as_by_a_stable_sort(seed: int, k: int, levels: int, block: int) -> None:
    """Equal similarities would be picked at random; duplicates, empty slots and block borders included."""
    generator = torch.Generator().manual_seed(seed)
    q, b = (torch.randint(-levels, levels + 1, (n, 2), generator=generator).double() for n in (5, 14))
    query_ids, key_ids = torch.arange(5), torch.arange(14) % 7
    key_ids[3:6] = -1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", block)
        found = nearest_neighbours(q, b, k, query_ids=query_ids, key_ids=key_ids)
    assert found.tolist() == by_sorting(q, b, k, query_ids, key_ids)


def test_all_points_in_one_place() -> None:
    """Collapsed features would give a sample as its own neighbour, or positions in arbitrary order."""
    z, ids = torch.ones(6, 3), torch.arange(6)
    found = nearest_neighbours(z, z, 5, query_ids=ids, key_ids=ids)
    assert found.tolist() == [[j for j in range(6) if j != i] for i in range(6)]


def test_nearest_of_class_is_brute_force() -> None:
    """The one that joins would have another label, be the sample itself, or not be the nearest."""
    z = points(40, 3)
    y, ids = torch.arange(40) % 13, torch.arange(40)
    y[39] = 99  # a class with a single sample
    wanted = ids % 3 == 0
    found = nearest_of_class(z, y, z, y, wanted=wanted, query_ids=ids, key_ids=ids)
    for i in range(40):
        there = [j for j in range(40) if y[j] == y[i] and j != i]
        expected = max(there, key=lambda j: float(z[i] @ z[j])) if wanted[i] and there else -1
        assert found[i] == expected


def test_vmap_and_compile_take_the_search_whole() -> None:
    """Per-sample gradients or a compiled loss would stop at the search."""
    q, b = points(12, 4).view(3, 4, 4), points(20, 4, 1)
    expected = torch.stack([nearest_neighbours(each, b, 3) for each in q])
    assert torch.equal(torch.func.vmap(lambda each: nearest_neighbours(each, b, 3))(q), expected)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(neighbours._search, (q[0], b, torch.arange(4), torch.arange(20), 3), test_utils=checks)
    labels = torch.arange(20) % 2
    arguments = (q[0], labels[:4], b, labels, torch.arange(4), torch.arange(20), torch.ones(4, dtype=torch.bool))
    torch.library.opcheck(neighbours._search_class, arguments, test_utils=checks)


def test_not_a_number_gives_no_error_and_no_infinite_loop() -> None:
    """A diverged network would die in the search instead of being reported as diverged by its loss."""
    z = torch.full((4, 2), torch.nan)
    assert nearest_neighbours(z, z, 2).shape == (4, 2)


def test_a_block_is_all_that_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix of all pairs would be formed after all."""
    monkeypatch.setattr(neighbours, "BLOCK", 50)
    z, ids = points(20, 3), torch.arange(20)
    sizes = [s.numel() for _, s in neighbours._blocks(z, z, ids, ids)]
    assert max(sizes) <= 50 and sum(sizes) == 400


@pytest.mark.parametrize(
    ("k", "key_ids", "message"),
    [
        (6, None, r"k must be from 1 to the number of keys, 5; got 6"),
        (0, None, r"k must be from 1"),
        (5, torch.arange(5), r"k = 5, but a query has only 4 neighbours among 5 keys"),
        (4, torch.tensor([0, 1, -1, 2, 3]), r"only 3 neighbours"),
        (2, torch.arange(4), r"key_ids must be integers \(5,\)"),
    ],
)
def test_k_above_the_number_of_neighbours_is_refused(k: int, key_ids: Tensor | None, message: str) -> None:
    """The sample itself or an empty slot would be counted as a neighbour."""
    z = points(5, 2)
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(z, z, k, query_ids=torch.arange(5), key_ids=key_ids)


def test_shapes_and_types_are_checked() -> None:
    """Broadcasting would give a result for features that do not belong together."""
    with pytest.raises(ValueError, match=r"one D; got \(4, 3\) and \(5, 2\)"):
        nearest_neighbours(points(4, 3), points(5, 2), 1)
    with pytest.raises(ValueError, match="one floating type"):
        nearest_neighbours(points(4, 3).float(), points(5, 3), 1)
    y, wanted = torch.arange(4), torch.ones(4, dtype=torch.bool)
    with pytest.raises(ValueError, match="label per query"):
        nearest_of_class(points(4, 3), y[:2], points(4, 3), y, wanted=wanted)
