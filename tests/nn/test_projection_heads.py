"""Projection heads: geometric weights and their gradients, no head at kappa 1, equal widths."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.nn.projection_heads import FixedReweightingHead, WithProjectionHead, projection_head


def test_weights_and_gradients_fall_geometrically() -> None:
    """Feature i would not count kappa^-i times as much, forward and backward."""
    head, z = FixedReweightingHead(6, kappa=1.3), torch.ones(2, 6, requires_grad=True)
    expected = torch.tensor([1.3**-i for i in range(6)]).expand(2, 6)
    torch.testing.assert_close(head(z), expected)
    (gradient,) = torch.autograd.grad(head(z).sum(), z)
    torch.testing.assert_close(gradient, expected)
    assert not list(head.parameters()) and set(head.state_dict()) == {"weight"}


def test_kappa_one_is_no_head() -> None:
    """The fixed head's limit would not be the baseline bit for bit."""
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(FixedReweightingHead(8, kappa=1.0)(z), projection_head("none", 8)(z))


@pytest.mark.parametrize(("kind", "parameters"), [("none", 0), ("fixed", 0), ("linear", 72), ("mlp", 144)])
def test_kinds_keep_the_width_and_have_their_parameters(kind: str, parameters: int) -> None:
    """Features before and after a head would not be comparable, or a kind would be another network."""
    head = projection_head(kind, 8, generator=torch.Generator().manual_seed(0))
    assert head(torch.zeros(3, 8)).shape == (3, 8)
    assert sum(p.numel() for p in head.parameters()) == parameters


def test_heads_are_drawn_as_torch_draws_linear_layers() -> None:
    """A head of ours would start at another scale than `nn.Linear`'s, or draw from the global generator."""
    state = torch.random.get_rng_state()
    layer = projection_head("linear", 200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), state)
    for parameter in layer.parameters():  # uniform within 1 / sqrt(fan-in)
        assert parameter.abs().max() <= 200**-0.5
        assert parameter.std().item() == pytest.approx(200**-0.5 / 3**0.5, rel=0.1)


def test_features_are_those_below_the_head() -> None:
    """What is kept for downstream tasks would have passed through the head."""
    encoder = nn.Linear(4, 3, bias=False)
    model = WithProjectionHead(encoder, FixedReweightingHead(3, kappa=2.0))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.features(x), x @ encoder.weight.T)
    torch.testing.assert_close(model(x), x @ encoder.weight.T * torch.tensor([1.0, 0.5, 0.25]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedReweightingHead(4, kappa=0.9), "kappa >= 1"),
        (lambda: FixedReweightingHead(0), "dim >= 1"),
        (lambda: FixedReweightingHead(1000, kappa=1.2), "smaller kappa"),
        (lambda: projection_head("conv", 4), "'conv'"),
        (lambda: FixedReweightingHead(4)(torch.zeros(2, 1)), r"expected 4 features, got \(2, 1\)"),
    ],
)
def test_refuses_bad_input(make: object, message: str) -> None:
    """A growing head, weights that vanish, or a broadcast feature would pass unseen."""
    with pytest.raises(InvalidInput, match=message):
        make()  # type: ignore[operator]
