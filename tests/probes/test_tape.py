"""The tape plays a linear map back for other inputs, and refuses what it could not play."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.probes._tape import Tape


def test_it_plays_views_constants_and_several_outputs() -> None:
    """A view, a transposed constant or a list of results would be lost or stay at its recorded value."""
    A, x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3)

    def linear(x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (x @ A).split(2, dim=1)
        return torch.cat([high.T, low.T]), (torch.zeros_like(x) + x * A.relu().sum()).view(6)

    with (tape := Tape([x])):
        outputs = linear(x)
    played = tape.close(outputs)
    for _ in range(2):
        other = torch.randn(2, 3)
        for found, expected in zip(played(other), linear(other), strict=True):
            assert torch.equal(found, expected)


def test_memory_that_is_used_again_is_not_mistaken() -> None:
    """A freed tensor's address would make an unrelated constant look recorded."""
    x = torch.ones(1000)
    with (tape := Tape([x])):
        for _ in range(5):
            _ = x * 2
        constant = torch.arange(1000.0)
        y = x + constant * 0 + x * constant
    found = tape.close([y])(torch.full((1000,), 2.0))[0]
    assert torch.equal(found, 2 + 2 * torch.arange(1000.0))


def test_a_write_into_a_constant_is_refused() -> None:
    """The second play would add to what the first one left."""
    x, total = torch.ones(3), torch.zeros(3)
    with pytest.raises(NotImplementedError), Tape([x]):
        total += x


def test_an_output_that_was_not_recorded_is_refused() -> None:
    """A constant would be played back as if it were linear in the input."""
    x = torch.ones(3)
    with (tape := Tape([x])):
        y = torch.ones(3) * 2
    with pytest.raises(KeyError):
        tape.close([y])
