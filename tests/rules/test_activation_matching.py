"""Matching losses against their sums written out, and where they are 0."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from assay.rules.activation_matching import normalized_match, prototype_match, squared_match

Y = torch.tensor([2, 0, 1, 2, 2])


def _tensors(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for rows in (5, 3))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 3)])
def test_prototype_is_the_sum(shape: tuple[int, ...]) -> None:
    """The mean would be over other entries, the width another, or the constant missing."""
    a, s = _tensors(*shape)
    total = 0.0
    for i in range(5):
        for j in range(3):
            product = sum((p * q).item() for p, q in zip(a[i].flatten(), s[j].flatten(), strict=True))
            total += (product - (Y[i] == j).item()) ** 2
    assert prototype_match(a, s, Y).item() == pytest.approx(256 * total / 15 / math.prod(shape))


def test_normalized_is_the_sum() -> None:
    """A penalty would be missing or weigh otherwise; the identity is that of samples, not of classes."""
    a, s = _tensors(2, 3, 3)

    def cosines(p: Tensor, q: Tensor) -> list[list[float]]:
        return [[torch.cosine_similarity(u.flatten(), v.flatten(), dim=0).item() for v in q] for u in p]

    def mean_square(found: list[list[float]], wanted: list[list[bool]]) -> float:
        pairs = [(f - w) ** 2 for fs, ws in zip(found, wanted, strict=True) for f, w in zip(fs, ws, strict=True)]
        return sum(pairs) / len(pairs)

    between = mean_square(cosines(a, s), [[c == y for c in range(3)] for y in Y.tolist()])
    samples = mean_square(cosines(a, a), [[i == j for j in range(5)] for i in range(5)])
    classes = mean_square(cosines(s, s), [[i == j for j in range(3)] for i in range(3)])
    assert normalized_match(a, s, Y).item() == pytest.approx(between + samples / 2 + classes / 2, rel=1e-6)


def test_where_nothing_is_left_to_match() -> None:
    """Orthogonal signals and activations at their duals, S[y] / |S|^2, would still be pulled elsewhere."""
    s = torch.linalg.qr(torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0].T * 2.5
    assert prototype_match(s[Y] / 2.5**2, s, Y).item() < 1e-25
    assert prototype_match(s[Y], s, Y).item() > 1
    assert normalized_match(7 * s, s, torch.arange(3)).item() < 1e-14


def test_rows_of_zeros_count_as_no_similarity() -> None:
    """A sample left out would drop from the mean, or make it NaN: the code compares its zeros with 1."""
    a, s = torch.zeros(2, 3), torch.eye(3)
    assert normalized_match(a, s, torch.tensor([0, 1])).item() == pytest.approx(2 / 6 + (2 / 4 + 0) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_zeros_are_no_nan_in_half_precision(dtype: torch.dtype) -> None:
    """A length of 0 would divide 0, since what is added to it is 0 in float16."""
    a, s = torch.zeros(2, 3, dtype=dtype, requires_grad=True), torch.eye(3, dtype=dtype)
    loss = normalized_match(a, s, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(2 / 6 + (2 / 4 + 0) / 2, rel=0.01) and a.grad.isfinite().all()


def test_squared_weighs_maps_by_their_height() -> None:
    """Feature maps would be weighed as flat layers are."""
    a, s = torch.full((2, 3, 5, 4), 2.0), torch.zeros(2, 3, 5, 4)
    assert squared_match(a, s).item() == pytest.approx(4 * 5)
    assert squared_match(a.flatten(1), s.flatten(1)).item() == pytest.approx(4)
