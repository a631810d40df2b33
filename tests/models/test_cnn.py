"""CNN against the convolution written out with torch's functions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from assay.errors import InvalidInput
from assay.models.cnn import CNN


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_forward_is_conv_relu_pool_norm() -> None:
    """A block's layers would be in another order, or the head would read something else."""
    model = CNN((3, 9, 8), 5, channels=(4, 6), generator=_generator())
    x = torch.randn(7, 3, 9, 8, generator=_generator(1))
    h = x
    for name in ("block1", "block2"):
        weight = model.get_parameter(f"{name}.0.weight")
        h = F.max_pool2d(F.relu(F.conv2d(h, weight, padding=1)), 2)
        h = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(model(x), F.linear(h.flatten(1), model.head.weight, model.head.bias))


def test_weights_are_he_uniform_without_bias() -> None:
    """The initial scale would not keep the activations' variance through ReLU."""
    model = CNN((16, 8, 8), 5, channels=(64,), generator=_generator())
    weight, bound = model.block1[0].weight, math.sqrt(6 / (16 * 9))
    assert model.block1[0].bias is None
    assert weight.abs().max() <= bound and weight.abs().max() > 0.99 * bound
    assert abs(weight.std().item() - bound / math.sqrt(3)) < 0.02 * bound


def test_generator_decides_the_weights_alone() -> None:
    """A given generator would be mixed with the global one."""
    before = torch.get_rng_state()
    a, b = (CNN((1, 8, 8), 4, generator=_generator(5)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("shape", "channels"), [((8, 8), (4,)), ((1, 4, 8), (4, 4, 4)), ((1, 8, 8), ()), ((1, 8, 8), (4, 0))]
)
def test_refuses_what_does_not_fit(shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
    """An image too small for the pools, or no image at all, would fail inside torch."""
    with pytest.raises(InvalidInput):
        CNN(shape, 10, channels=channels)
