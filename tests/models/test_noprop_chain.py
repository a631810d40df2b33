"""NoPropChain against its recursion written out."""

from __future__ import annotations

import math

import pytest
import torch

from assay.errors import InvalidInput
from assay.models.noprop_chain import NoPropChain
from assay.models.noprop_net import NoPropNet


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mixture_is_the_recursion_of_the_paper() -> None:
    """Gates, softmax or readout would be others than those of the paper's baseline."""
    chain = NoPropChain((5,), 3, blocks=3, width=4, generator=_generator()).eval()
    with torch.no_grad():
        chain.gates.copy_(torch.tensor([0.3, -0.2, 2.0]))
    x = torch.randn(6, 5, generator=_generator(1))
    z = torch.zeros(6, 3)
    for w, block in zip((0.3, -0.2, 2.0), chain.net.blocks, strict=True):
        guess = block(z, block.encode(x)).softmax(1)
        z = (1 - math.tanh(w)) * z + math.tanh(w) * guess
    torch.testing.assert_close(chain(x), chain.head(z))


def test_logits_add_up_without_the_noise_they_start_from() -> None:
    """The strong baseline's scores would not be the sum of its blocks' logits, or would carry the noise."""
    chain = NoPropChain((5,), 3, blocks=2, link="logits", width=4, generator=_generator()).train()
    x, start = torch.randn(6, 5, generator=_generator(1)), torch.randn(6, 3, generator=_generator(2))
    chain.net.start = lambda _: start  # type: ignore[method-assign, assignment]
    first, second = chain.net.blocks
    one = first(start, first.encode(x))
    two = second(start + one, second.encode(x))
    torch.testing.assert_close(chain(x), one + two)


def test_blocks_are_those_of_the_network_that_no_prop_trains() -> None:
    """Backpropagation would be compared on other blocks, or from other initial weights."""
    chain, net = (kind((5,), 3, blocks=2, width=4, generator=_generator(7)) for kind in (NoPropChain, NoPropNet))
    ours, theirs = dict(chain.net.named_parameters()), dict(net.named_parameters())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_refuses_an_unknown_link() -> None:
    """A typo would choose a link in silence."""
    with pytest.raises(InvalidInput, match="'mixture' or 'logits'"):
        NoPropChain((5,), 3, link="sum")
