"""Physical and digital layers in turn: what the modes share and in what they differ."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from assay.errors import InvalidInput
from assay.models.physical_network import PhysicalNetwork
from assay.rules.backprop import Backprop
from assay.rules.splitting import blocks


def _network(mode: str = "block", **options: object) -> PhysicalNetwork:
    generator = torch.Generator().manual_seed(0)
    return PhysicalNetwork((1, 3, 2), 4, width=5, mode=mode, generator=generator, **options)


def _batch() -> tuple[Tensor, Tensor]:
    return torch.randn(9, 1, 3, 2, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 4


def _gradients(network: PhysicalNetwork) -> dict[str, Tensor]:
    Backprop(network).backward(*_batch())
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("label_slots", [False, True])
def test_all_modes_are_one_network_on_hardware(label_slots: bool) -> None:
    """Arms that differ in their gradients only would differ in systems or weights."""
    x, expected = _batch()[0], None
    for mode in ("block", "ideal", "model", "straight-through"):
        network = _network(mode, mismatch=0.7, label_slots=label_slots).eval()
        expected = network(x) if expected is None else expected
        assert torch.equal(network(x), expected)


def test_output_is_systems_and_linear_maps_in_turn() -> None:
    """A block would apply its parts in another order, or an activation in between."""
    network, x = _network(label_slots=True), _batch()[0]
    h = torch.cat([torch.zeros(9, 4), x.flatten(1) + 1], dim=1)
    for layer, block in zip(network.physical_layers(), (network.block1, network.block2), strict=True):
        h = F.linear(layer.system(h), block[1].weight, block[1].bias)
    torch.testing.assert_close(network(x), F.linear(h, network.head.weight, network.head.bias))
    with_label = torch.cat([torch.zeros(9, 4), x.flatten(1)], dim=1)
    torch.testing.assert_close(network(with_label), network(x))


def test_a_perfect_model_is_the_system() -> None:
    """In-silico training or the straight-through gradient would be off even without mismatch."""
    ideal, model, through = _network("ideal"), _network("model"), _network("straight-through")
    x = _batch()[0]
    torch.testing.assert_close(model(x), ideal(x))
    expected, others = _gradients(ideal), (_gradients(model), _gradients(through))
    for found in others:
        torch.testing.assert_close(found, expected)


def test_mismatch_changes_gradients_only() -> None:
    """A wrong model would not matter to training, or reach the deployed network."""
    found, expected = _gradients(_network("straight-through", mismatch=1.0)), _gradients(_network("ideal"))
    torch.testing.assert_close(found["block2.1.weight"], expected["block2.1.weight"])
    assert not torch.allclose(found["block1.1.weight"], expected["block1.1.weight"])


def test_backprop_cannot_train_unknown_systems() -> None:
    """The first block's weights would silently stay random."""
    with pytest.raises(InvalidInput, match="no gradient crosses"):
        _gradients(_network("block"))


def test_drift_reaches_the_systems_and_not_their_models() -> None:
    """A model would follow the hardware without having been measured again."""
    network, x = _network("model", mismatch=0.2), _batch()[0]
    models = [layer.model.transmission.clone() for layer in network.physical_layers()]
    before = network.eval()(x)
    network.drift(0.3, torch.Generator().manual_seed(2))
    assert not torch.allclose(network(x), before)
    assert all(torch.equal(a, b.model.transmission) for a, b in zip(models, network.physical_layers(), strict=True))


def test_skip_reads_the_systems_input_too() -> None:
    """The linear layer would not see what went into the system."""
    network, x = _network(skip=True, shift=0.0), _batch()[0]
    h = x.flatten(1)
    read = torch.cat([network.physical_layers()[0].system(h), h], dim=1)
    torch.testing.assert_close(blocks(network).outputs(x)["block1"], network.block1[1](read))


@pytest.mark.parametrize("options", [{"mode": "magic"}, {"width": 0}, {"depth": 0}])
def test_bad_input_is_refused(options: dict[str, object]) -> None:
    """A network without blocks or with an unknown mode would be built."""
    with pytest.raises(InvalidInput, match=r"mode must be|at least 1"):
        PhysicalNetwork((6,), 4, **options)
