"""How a network is split into blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.nn.physical_transform import PhysicalTransform
from assay.rules.splitting import block_widths, blocks


def test_flat_sequential_is_grouped_by_weights() -> None:
    """Norms, activations and pools would not stay with the layer before them, or flattening not with the first."""
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)
    )  # fmt: skip
    found = blocks(net)
    assert [[type(m).__name__ for m in block] for block in found.modules] == [
        ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Dropout"], ["Linear", "ReLU"]
    ]  # fmt: skip
    assert found.names == ("1", "5") and found.head is net[7]


@pytest.mark.parametrize("model", [MLP((1, 8, 8), 3, depth=3), CNN((1, 8, 8), 3)], ids=["mlp", "cnn"])
def test_blocks_then_head_are_the_network(model: nn.Sequential) -> None:
    """The blocks would leave out a layer: applying them and the head would not be the network."""
    model.eval()
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = blocks(model)
    assert found.names == ("block1", "block2", "block3") and found.head is not None
    last = list(found.outputs(x).values())[-1]
    assert torch.equal(found.head(last), model(x))


def test_a_simulations_weights_begin_no_block() -> None:
    """A physical layer that is a module would be a block of its own, in which nothing is trained."""
    net = nn.Sequential(
        PhysicalTransform(nn.Linear(4, 3), 3), nn.Linear(3, 3), PhysicalTransform(nn.Linear(3, 3), 3), nn.Linear(3, 3), nn.ReLU()
    )  # fmt: skip
    assert blocks(net).names == ("1", "3") and blocks(net).modules[0][0] is net[0]


def test_named_blocks_of_any_module() -> None:
    """A model that is no Sequential could not be trained by its named parts."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 3)])

    net = Net()
    found = blocks(net, ["encoder.0", "encoder.1"])
    assert found.modules == (net.encoder[0], net.encoder[1]) and found.head is None
    with pytest.raises(InvalidInput, match="named once"):
        blocks(net, ["encoder.0", "encoder.0"])
    with pytest.raises(InvalidInput, match=r"'encoder\.7'"):
        blocks(net, ["encoder.7"])


class _Residual(nn.Sequential):
    """Its forward is more than its children in turn."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 2), "nn.Sequential"),
        (_Residual(nn.Linear(3, 3), nn.ReLU()), "forward of its own"),
        (nn.Sequential(nn.Linear(3, 2)), "no blocks"),
        (nn.Sequential(nn.ReLU()), "no blocks"),
        (nn.Sequential(), "no blocks"),
        (MLP((3,), 2, depth=0), "no blocks"),
    ],
)
def test_refuses_what_has_no_blocks(model: nn.Module, message: str) -> None:
    """A model that a local rule cannot train would be accepted and learn nothing."""
    with pytest.raises(InvalidInput, match=message):
        blocks(model)


def test_widths_of_convolutions_leave_no_trace() -> None:
    """Widths would be wrong, or measuring them would move batch normalisation's statistics or the modes."""
    model = CNN((1, 9, 8), 3, channels=(4, 6))
    model.block2.eval()
    modes, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    assert block_widths(blocks(model), model) == (72, [4 * 4 * 4, 6 * 2 * 2])
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_input_shape_is_inferred_or_asked_for() -> None:
    """A plain Sequential's shape would be guessed wrongly, or a convolution's not be asked for."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    assert block_widths(blocks(flat), flat) == (12, [5])
    conv = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(InvalidInput, match="input_shape"):
        block_widths(blocks(conv), conv)
    assert block_widths(blocks(conv), conv, (2, 4, 4)) == (32, [12])
    with pytest.raises(InvalidInput, match="do not take inputs of shape"):
        block_widths(blocks(conv), conv, (7, 4, 4))


def test_seam_exports_functions_not_their_modules() -> None:
    """A module named like its function would hide it: `from assay.rules import blocks, fit` would give modules."""
    import assay.rules

    assert callable(assay.rules.blocks) and callable(assay.rules.fit)
    assert assay.rules.blocks is blocks
