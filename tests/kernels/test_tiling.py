from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.kernels.tiling import tiled


def mlp(dropout=0.0):
    """A block's MLP in float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.GELU(), nn.Dropout(dropout), nn.Linear(40, 6)).double()


def inputs(length=10):
    """(2, length, 6)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, length, 6, generator=generator, dtype=torch.float64, requires_grad=True)


def value_and_gradients(module, x):
    """The result and the gradients of its squares' sum."""
    value = module(x)
    return [value.detach(), *torch.autograd.grad(value.square().sum(), (x, *module.parameters()))]


@pytest.mark.parametrize("shards", [1, 3, 10, 99])
def test_tiles_compute_what_the_whole_does(shards):
    """Splitting, or recomputing in backward, would change results or gradients."""
    module, x = mlp(), inputs()
    expected, keys = value_and_gradients(module, x), list(module.state_dict())
    with tiled(module, shards) as change:
        assert change.counts == {"tiled": 1}
        assert list(module.state_dict()) == keys
        found = value_and_gradients(module, x)
        with torch.no_grad():
            torch.testing.assert_close(module(x), expected[0], rtol=1e-12, atol=1e-12)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert type(module) is nn.Sequential
    assert all(torch.equal(a, b) for a, b in zip(value_and_gradients(module, x), expected, strict=True))


def saved_elements(module, x):
    """How many elements are kept for backward, parameters and x aside."""
    given = {t.untyped_storage().data_ptr() for t in (x, *module.parameters())}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = tensor  # alive, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = module(x)
    assert result.requires_grad
    return sum(tensor.untyped_storage().size() // 8 for tensor in kept.values())


def test_nothing_inside_is_kept_for_backward():
    """The memory that tiles are for would not be saved."""
    module, x = mlp(), inputs(100)
    assert saved_elements(module, x) >= 2 * 200 * 40
    with tiled(module, 4):
        assert saved_elements(module, x) == 0


def test_dropout_is_the_same_when_recomputed():
    """Backward would differentiate another network than the one that ran forward."""
    module, x = mlp(dropout=0.5), inputs()
    with tiled(module, 3):
        torch.manual_seed(3)
        value = module(x)
        gradient = torch.autograd.grad(value.sum(), module[3].weight)[0]
        torch.manual_seed(3)
        with torch.no_grad():
            before = nn.Sequential(*list(module)[:3])
            hidden = torch.cat([before(part) for part in x.chunk(3, -2)], -2)
    torch.testing.assert_close(gradient, hidden.sum((0, 1)).expand(6, 40))


def test_another_dimension():
    """Inputs with positions first would be split along their features."""
    module, x = mlp(), inputs()
    expected = module(x)
    with tiled(module, 2, dim=0):
        torch.testing.assert_close(module(x), expected)


def test_bad_calls_raise_one_clear_error():
    """No shard at all, or tiles of tiles, would fail far from the cause."""
    module = mlp()
    with pytest.raises(InvalidInput, match="shards must be at least 1, not 0"):
        tiled(module, 0)
    with tiled(module, 2), pytest.raises(InvalidInput, match="this Sequential is tiled already"):
        tiled(module, 2)
