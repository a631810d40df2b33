"""The mirror of a network: shapes, kinds of layers, initial weights, what has none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.rules.mirrored_network import mirror
from assay.rules.splitting import blocks


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (MLP((1, 4, 5), 3, width=(7, 6), activation="elu"), (1, 4, 5)),
        (CNN((2, 13, 9), 3, channels=(4, 5, 6)), (2, 13, 9)),
        (nn.Sequential(nn.Conv2d(1, 4, 5, stride=2), nn.ELU(), nn.Flatten(), nn.Linear(64, 3)), (1, 11, 11)),
    ],
)
def test_signals_have_the_shapes_of_the_activations(model: nn.Sequential, shape: tuple[int, ...]) -> None:
    """A signal would not be of its counterpart's shape: odd sizes, strides, pooling and flattening included."""
    found = blocks(model)
    expected = [tuple(a.shape[1:]) for a in found.outputs(torch.zeros(2, *shape)).values()]
    s, shapes = torch.eye(3), []
    for layer in mirror([*found.modules, found.head], shape):
        s = layer(s)
        shapes.insert(0, tuple(s.shape[1:]))
    assert shapes == [shape, *expected]


def test_layers_of_the_mirror() -> None:
    """A mirrored layer would have a bias, another kernel or order, or the last one an activation."""
    block = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ELU(), nn.MaxPool2d(2), nn.Flatten())
    last, first = mirror([block, nn.Linear(64, 3)], (2, 8, 8), "tanh", _generator())
    assert [type(m) for m in last] == [nn.Flatten, nn.Linear, nn.Tanh]
    assert [type(m) for m in first] == [nn.Flatten, nn.Unflatten, nn.Upsample, nn.Conv2d]
    assert last[1].bias is None and first[3].bias is None and first[3].weight.shape == (2, 4, 3, 3)
    maps = torch.randn(3, 4, 4, 4, generator=_generator())
    upsampled = maps.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(first(maps.flatten(1)), nn.functional.conv2d(upsampled, first[3].weight, padding=1))


def test_weights_are_torchs_defaults_from_the_generator() -> None:
    """Weights would be drawn from the global generator or from another distribution, or be the forward ones."""
    before = torch.get_rng_state()
    layers = [nn.utils.skip_init(nn.Linear, 300, 200), nn.utils.skip_init(nn.Linear, 200, 100)]
    a, b = (mirror(layers, (300,), generator=_generator()) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    for weight, fan_in in zip(a.parameters(), (100, 200), strict=True):
        assert weight.abs().max() <= 1 / math.sqrt(fan_in)
        assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.02)


def test_refuses_what_has_no_mirror() -> None:
    """A layer of another kind would get a mirror that does not fit it."""
    pair = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))
    for layers, shape in (([nn.Bilinear(4, 4, 3)], (4,)), ([pair], (4,)), ([nn.Linear(4, 3)], (5,))):
        with pytest.raises(InvalidInput):
            mirror(layers, shape)
    with pytest.raises(InvalidInput, match="activation"):
        mirror([nn.Linear(4, 3)], (4,), "swish")
