"""The row-by-row recurrent classifier against torch's own layers and its recurrence written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.models.row_rnn import RowRNN
from assay.rules.splitting import blocks


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_forward_is_the_recurrence_over_rows() -> None:
    """Rows would be read in another order, or another state than the last reach the head."""
    net = RowRNN((2, 5, 3), 4, width=6, generator=_generator()).double()
    x = torch.randn(7, 2, 5, 3, generator=_generator(1), dtype=torch.float64)
    cell, h = net.block1.cell, torch.zeros(7, 6, dtype=torch.float64)
    for t in range(5):
        row = torch.cat([x[:, 0, t], x[:, 1, t]], 1)
        z = row @ cell.weight_ih_l0.T + cell.bias_ih_l0 + h @ cell.weight_hh_l0.T + cell.bias_hh_l0
        h = z.tanh()
    torch.testing.assert_close(net(x), h @ net.head.weight.T + net.head.bias)


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_stacked_layers_are_torchs(cell: str) -> None:
    """Two layers would not be `nn.RNN` or `nn.GRU` of two layers on a sequence."""
    net = RowRNN((5, 3), 4, width=6, depth=2, cell=cell, generator=_generator())
    stacked = {"rnn": nn.RNN, "gru": nn.GRU}[cell](3, 6, num_layers=2, batch_first=True)
    for i, block in enumerate((net.block1, net.block2)):
        for name, value in block.cell.state_dict().items():
            stacked.get_parameter(name.replace("l0", f"l{i}")).data.copy_(value)
    x = torch.randn(7, 5, 3, generator=_generator(1))
    torch.testing.assert_close(net(x), net.head(stacked(x)[0][:, -1]))


def test_blocks_and_initial_weights() -> None:
    """Rules would not find the recurrent layers, or the weights not be torch's U(-1, 1) / sqrt(d) of the generator."""
    before = torch.get_rng_state()
    nets = [RowRNN((1, 8, 8), 10, width=25, depth=2, generator=_generator()) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    found = blocks(nets[0])
    assert found.names == ("block1", "block2") and found.head is nets[0].head
    assert [h.shape for h in found.outputs(torch.zeros(3, 1, 8, 8)).values()] == [(3, 8, 25), (3, 25)]
    assert all(torch.equal(p, q) for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    weights = torch.cat([p.flatten() for p in nets[0].block2.parameters()])
    assert weights.abs().max() <= 0.2 and weights.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    "arguments",
    [{"input_shape": (8,)}, {"input_shape": (1, 8, 8), "cell": "lstm"}, {"input_shape": (1, 8, 8), "depth": 0}],
)
def test_refuses_what_it_cannot_be(arguments: dict) -> None:
    """A flat input, an unknown cell or no layer would fail later, or never."""
    with pytest.raises(InvalidInput):
        RowRNN(outputs=10, **arguments)
