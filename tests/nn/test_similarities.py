"""Similarities of chosen pairs against the dense matrix, in values, gradients and second gradients, whatever the block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.nn import similarities
from assay.nn.similarities import neighbour_similarities


def pairs(queries: int, keys: int, dim: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian queries and keys in float64, and distinct positions per query."""
    generator = torch.Generator().manual_seed(0)
    q, b = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in (queries, keys))
    positions = torch.stack([torch.randperm(keys, generator=generator)[:k] for _ in range(queries)])
    return q.requires_grad_(), b.requires_grad_(), positions


@pytest.mark.parametrize("k", [2, 9])  # k D below and above N: chosen keys, or blocks of the matrix
@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_equals_the_dense_matrix(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values or gradients would be those of other pairs, or a block's share would be lost."""
    monkeypatch.setattr(similarities, "BLOCK", block)
    q, b, positions = pairs(7, 11, 3, k)
    upstream = torch.randn(7, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = (q @ b.T).gather(1, positions)
    found = neighbour_similarities(q, b, positions)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for a, e in zip(*(torch.autograd.grad(s, (q, b), upstream) for s in (found, expected)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [2, 4])
def test_finite_differences(k: int) -> None:
    """First or second derivatives by queries and keys would be wrong."""
    q, b, positions = pairs(3, 6, 2, k)
    assert torch.autograd.gradcheck(neighbour_similarities, (q, b, positions))
    assert torch.autograd.gradgradcheck(neighbour_similarities, (q, b, positions))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    """A bank without gradient would cost one, or take the queries' from them."""
    q, b, positions = pairs(4, 6, 2, 2)
    neighbour_similarities(q, b.detach(), positions).sum().backward()
    torch.testing.assert_close(q.grad, b.detach()[positions].sum(dim=1))
    neighbour_similarities(q.detach(), b, positions).sum().backward()
    assert b.grad is not None
