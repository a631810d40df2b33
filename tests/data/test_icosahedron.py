"""Patterns on the icosahedron: all there once, labelled by a rule that its symmetries leave alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from assay.data.icosahedron import _vertices, icosahedron_majority, icosahedron_patterns
from assay.errors import InvalidInput


def symmetries():
    """The permutations of vertices that the icosahedron's rotations and reflections make, grown from three generators."""
    v = _vertices()
    axis = torch.tensor([0.0, 1.0, (1 + 5**0.5) / 2], dtype=torch.float64)
    x, y, z = (axis / axis.norm()).tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    turn = 2 * math.pi / 5
    fifth = torch.eye(3, dtype=torch.float64) + math.sin(turn) * cross + (1 - math.cos(turn)) * cross @ cross
    generators = [fifth, torch.eye(3, dtype=torch.float64)[[2, 0, 1]], torch.diag(torch.tensor([-1.0, 1, 1])).double()]
    moves = []
    for matrix in generators:
        distances = torch.cdist(v @ matrix.T, v)
        assert distances.min(dim=1).values.max() < 1e-9
        moves.append(tuple(distances.argmin(dim=1).tolist()))
    group, new = {tuple(range(12))}, {tuple(range(12))}
    while new:
        new = {tuple(g[i] for i in move) for g, move in itertools.product(new, moves)} - group
        group |= new
    return group


def test_labels_are_invariant_under_all_symmetries():
    """A vertex is out of place, or an edge is missing or too many."""
    x, y = icosahedron_patterns()
    place = 2 ** torch.arange(11, -1, -1)
    group = symmetries()
    assert len(group) == 120
    for permutation in group:
        assert torch.equal(y[(x[:, list(permutation)].long() @ place)], y)


def test_counts_are_those_of_the_rule():
    """The labels are unbalanced, or the easy patterns are not decided by the number of ones."""
    x, y = icosahedron_patterns()
    assert len(x.unique(dim=0)) == 4096 and set(x.unique().tolist()) == {0.0, 1.0}
    assert int(y.sum()) == 2158
    ones = x.sum(dim=1)
    assert y[ones <= 4].max() == 0 and y[ones >= 8].min() == 1
    assert {int(n) for n in ones[y == 1].unique()} & {5, 6, 7} and {int(n) for n in ones[y == 0].unique()} & {5, 6, 7}


def test_edges_by_hand():
    """Edges are counted otherwise: a vertex with its five neighbours has 5 + 5 of them, two opposite vertices have none."""
    v, (_, y) = _vertices(), icosahedron_patterns()
    near = (torch.cdist(v, v) - 2).abs() < 1e-9
    assert near.sum() == 60
    cap = near[0].float()
    cap[0] = 1
    place = 2 ** torch.arange(11, -1, -1)
    assert y[int(cap.long() @ place)] == 1
    cap[0] = 0  # the five neighbours alone: a ring of 5 edges
    assert y[int(cap.long() @ place)] == 0


def test_splits_are_disjoint_and_drawn_by_the_generator():
    """A pattern is in two splits, or the split is always the same."""
    data = icosahedron_majority(generator=torch.Generator().manual_seed(1))
    together = torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs])
    assert len(together.unique(dim=0)) == 4096 and data.outputs == 2
    again, other = (icosahedron_majority(generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert torch.equal(again.train.inputs, data.train.inputs) and not torch.equal(other.train.inputs, data.train.inputs)
    for sizes in ({"train": 0}, {"train": 4000}):
        with pytest.raises(InvalidInput):
            icosahedron_majority(**sizes)
