"""MLP against layers written out by hand."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.errors import InvalidInput
from assay.models.mlp import MLP


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_forward_is_the_formula() -> None:
    """The network would not be Linear - ReLU blocks with a linear head."""
    model = MLP((2, 3), 4, width=5, depth=2, generator=_generator())
    x = torch.randn(7, 2, 3, generator=_generator(1))
    p = dict(model.named_parameters())
    h = x.reshape(7, 6)
    for block in ("block1", "block2"):
        h = (h @ p[f"{block}.0.weight"].T + p[f"{block}.0.bias"]).clamp(min=0)
    torch.testing.assert_close(model(x), h @ p["head.weight"].T + p["head.bias"])


@pytest.mark.parametrize(("name", "function"), [("tanh", torch.tanh), ("elu", F.elu), ("relu", F.relu)])
def test_activations(name, function) -> None:
    """A block would have another activation than its name says; an unknown one would be ignored."""
    model, x = MLP((6,), 4, width=5, depth=1, activation=name, generator=_generator()), torch.randn(7, 6)
    torch.testing.assert_close(model(x), model.head(function(model.block1[0](x))))
    with pytest.raises(InvalidInput, match="relu, tanh, elu"):
        MLP((6,), 4, activation="swish")


def test_he_initialisation_keeps_the_size_of_signals() -> None:
    """A deep network would start with outputs that vanish, as with torch's default."""
    x = torch.randn(64, 256, generator=_generator(1))
    sizes = {}
    for he in (True, False):
        model = MLP((256,), 10, width=256, depth=10, he=he, generator=_generator())
        hidden = model[:-1](x)
        sizes[he] = float(hidden.detach().square().mean() / x.square().mean())
    # He et al., eq. (10): E[x^2] stays; torch's variance 1 / (3 fan-in) takes a factor 1 / 6 per block.
    assert 0.5 < sizes[True] < 2 and sizes[False] < 1e-3
    assert not model.block1[0].weight.equal(
        MLP((256,), 10, width=256, he=True, generator=_generator()).block1[0].weight
    )


def test_initialisation_is_torchs_own() -> None:
    """A layer drawn from the global generator would differ from nn.Linear's default."""
    torch.manual_seed(3)
    model = MLP((6,), 4, width=5, depth=1)
    torch.manual_seed(3)
    first, head = nn.Linear(6, 5), nn.Linear(5, 4)
    assert torch.equal(model.block1[0].weight, first.weight) and torch.equal(model.block1[0].bias, first.bias)
    assert torch.equal(model.head.weight, head.weight) and torch.equal(model.head.bias, head.bias)


def test_generator_decides_the_weights_alone() -> None:
    """A given generator would be mixed with the global one."""
    before = torch.get_rng_state()
    a, b = (MLP((6,), 4, generator=_generator(5)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_bias_and_batch_norm_options() -> None:
    """`bias=False` would leave a bias, or batch normalisation would not come before the ReLU."""
    model = MLP((6,), 4, width=5, depth=1, bias=False, batch_norm=True, generator=_generator())
    assert model.block1[0].bias is None and model.head.bias is None
    x = torch.randn(9, 6, generator=_generator(1))
    h = F.linear(x, model.block1[0].weight)
    expected = F.relu((h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt())
    torch.testing.assert_close(model[:2](x), expected)


@pytest.mark.parametrize(("width", "depth", "sizes"), [(8, None, [8, 8]), ((7, 5, 3), None, [7, 5, 3]), (8, 0, [])])
def test_widths(width: int | tuple[int, ...], depth: int | None, sizes: list[int]) -> None:
    """Width and depth would not give the blocks they name."""
    model = MLP((6,), 4, width, depth)
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [*sizes, 4]
    assert [name for name, _ in model.named_children()] == [
        "flatten", *(f"block{i + 1}" for i in range(len(sizes))), "head"
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [{"width": 0}, {"depth": -1}, {"width": (4, 4), "depth": 3}, {"outputs": 0}])
def test_refuses_impossible_sizes(arguments: dict) -> None:
    """An impossible size would fail later, inside torch."""
    with pytest.raises(InvalidInput):
        MLP(**({"input_shape": (6,), "outputs": 2} | arguments))


def test_slices_and_pickles() -> None:
    """A subclass of Sequential with its own constructor would break slicing or pickling."""
    model = MLP((6,), 4, width=5, generator=_generator())
    x = torch.randn(3, 6, generator=_generator(1))
    torch.testing.assert_close(model.head(model[:-1](x)), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    assert model.input_shape == (6,) and model[0] is model.flatten
