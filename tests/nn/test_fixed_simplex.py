"""Fixed simplex heads: the frame's Gram matrix, rotations, and what is trained."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.errors import InvalidInput
from assay.nn.fixed_simplex import SimplexETFLinear, simplex_etf
from assay.probes.neural_collapse import NeuralCollapse


@given(K=st.integers(2, 12), extra=st.integers(-1, 5), seed=st.none() | st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_gram_matrix_is_the_simplexs(K: int, extra: int, seed: int | None) -> None:
    """Rows would not have length 1 and pairwise cosine -1/(K-1), turned or not, at the least width or more."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    W = simplex_etf(K, K + extra, generator)
    assert W.shape == (K, K + extra)
    expected = K / (K - 1) * (torch.eye(K) - 1 / K)
    torch.testing.assert_close(W @ W.T, expected, rtol=0, atol=1e-5)


def test_padding_is_the_official_codes() -> None:
    """The default would not be the official frame, whose features beyond the K-th are never read."""
    W = simplex_etf(3, 5)
    expected = torch.zeros(3, 5)
    expected[:, :3] = (3 / 2) ** 0.5 * (torch.eye(3) - torch.ones(3, 3) / 3)
    torch.testing.assert_close(W, expected)


def test_only_the_bias_is_trained_and_the_probe_sees_a_simplex() -> None:
    """The frame would move in training, or get lost from checkpoints, or not be taken for the head."""
    head = SimplexETFLinear(6, 4, scale=2.0, generator=torch.Generator().manual_seed(0))
    before = head.weight.clone()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, weight_decay=0.1)
    head(torch.randn(5, 6, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    optimizer.step()
    assert torch.equal(head.weight, before) and head.bias.any()
    assert isinstance(head, nn.Linear) and set(head.state_dict()) == {"weight", "bias"}
    probe = NeuralCollapse(4, nc4=False)
    probe.update(head.weight.repeat(2, 1) / 3, torch.arange(4).repeat(2), head=head)
    values = probe.compute()
    assert max(values[key] for key in ("nc1", "nc2_etf_head", "nc3")) < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: simplex_etf(5, 3), "K = 5 and 3 features"),
        (lambda: simplex_etf(1, 3), "K >= 2"),
        (lambda: SimplexETFLinear(5, 5, scale=0.0), "scale"),
    ],
)
def test_refuses_bad_input(make: object, message: str) -> None:
    """There is no such simplex, which would show as NaN."""
    with pytest.raises(InvalidInput, match=message):
        make()  # type: ignore[operator]
