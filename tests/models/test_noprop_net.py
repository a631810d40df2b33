"""The blocks of NoPropNet against their layers written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._denoising_block import time_features
from assay.models.noprop_net import NoPropNet


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _norm(h: Tensor) -> Tensor:
    return (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()


def test_a_block_of_discrete_time_is_the_figure() -> None:
    """Paths, residual connection or normalisation would be others than in figure 6 of the paper."""
    net = NoPropNet((1, 2, 3), 4, blocks=1, width=6, generator=_generator()).double()
    x, z = torch.randn(9, 1, 2, 3).double(), torch.randn(9, 4).double()
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    image1, image2, label, inner1, inner2, top1, top2, out = layers
    code = _norm(image2(F.relu(image1(x.flatten(1)))))
    h = F.relu(_norm(label(z)))
    h = h + _norm(inner2(F.relu(_norm(inner1(h)))))
    top = F.relu(_norm(top2(F.relu(_norm(top1(torch.cat([code, h], 1)))))))
    block = net.blocks[0]
    torch.testing.assert_close(block(z, block.encode(x)), out(top))


def test_a_block_of_continuous_time_reads_time_and_has_no_normalisation() -> None:
    """A block would not depend on t, or samples of a mini-batch would depend on each other."""
    net = NoPropNet((1, 8, 8), 4, blocks=None, encoder="conv", channels=(3, 5), width=6, time_dim=8)
    block, x, z = net.blocks[0], torch.randn(5, 1, 8, 8), torch.randn(5, 4)
    t = torch.linspace(0, 1, 5)
    scores = block(z, block.encode(x), t)
    assert not torch.allclose(scores, block(z, block.encode(x), t + 0.01))
    torch.testing.assert_close(block(z[:1], block.encode(x[:1]), t[:1]), scores[:1])


def test_time_features_are_sinusoids_from_one_to_the_fastest() -> None:
    """Frequencies would not be geometric from 1 to 1000."""
    t = torch.tensor([0.0, 0.5], dtype=torch.float64)
    found = time_features(t, 6)
    rates = torch.tensor([1, 1000**0.5, 1000.0], dtype=torch.float64)
    torch.testing.assert_close(found, torch.cat([(t[:, None] * rates).sin(), (t[:, None] * rates).cos()], 1))


def test_alone_it_averages_its_blocks_on_noise_and_on_zero_in_evaluation() -> None:
    """The control without denoising would see a label, a constant in training, or noise in evaluation."""
    net = NoPropNet((6,), 3, blocks=2, width=4, generator=_generator())
    x = torch.randn(50, 6)
    assert abs(net.start(x).std() - 1) < 0.2 and not torch.equal(net.start(x), net.start(x))
    net.eval()
    assert not net.start(x).any() and torch.equal(net(x), net(x))
    torch.testing.assert_close(net(x), (net.block_scores(x, 0) + net.block_scores(x, 1)) / 2)


def test_noise_goes_on_after_loading() -> None:
    """A run that is resumed would see other noise."""
    a, b = (NoPropNet((6,), 3, blocks=1, width=4, generator=_generator(seed)) for seed in (0, 1))
    x = torch.zeros(4, 6)
    a.start(x)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.start(x), b.start(x))


def test_the_generator_decides_alone() -> None:
    """A given generator would be mixed with the global one."""
    before = torch.get_rng_state()
    a, b = (NoPropNet((6,), 3, blocks=2, width=4, generator=_generator(5)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_an_encoder_of_ones_own() -> None:
    """A user's encoder would not be the block's."""
    net = NoPropNet((6,), 3, blocks=2, width=4, encoder=lambda generator: nn.Linear(6, 4))
    assert all(isinstance(block.encode, nn.Linear) for block in net.blocks)
    assert net(torch.zeros(5, 6)).shape == (5, 3)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((6,), {"blocks": 0}),
        ((6,), {"width": 0}),
        ((6,), {"time_dim": 7}),
        ((6,), {"dropout": 1.0}),
        ((6,), {"encoder": "conv"}),
        ((1, 2, 8), {"encoder": "conv"}),
        ((1, 8, 8), {"encoder": "conv", "channels": ()}),
        ((6,), {"encoder": "resnet"}),
        ((6,), {"embed_dim": "words"}),
    ],
)
def test_refuses_what_does_not_fit(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """A size out of range would fail inside torch."""
    with pytest.raises(InvalidInput):
        NoPropNet(shape, 3, **options)
