"""The bank of features against a Python list: slots, the queue's order, saving, and errors."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.nn.feature_bank import FeatureBank


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), size=st.integers(5, 7))
@settings(max_examples=30, deadline=None)
def test_queue_keeps_the_newest(sizes: list[int], size: int) -> None:
    """The queue would drop the newest, keep the oldest, or mix up features, labels and ids."""
    bank, kept, clock = FeatureBank(size, 2, mode="queue"), [], 0
    for n in sizes:
        ids = torch.arange(clock, clock + n)
        angles = ids.float() / 50
        bank.update(3 * torch.stack([angles.cos(), angles.sin()], dim=1), ids % 3, ids)
        kept, clock = (kept + ids.tolist())[-size:], clock + n
    assert bank.filled == len(kept)
    found = bank.ids[bank.ids >= 0]
    assert sorted(found.tolist()) == sorted(kept)
    assert torch.equal(bank.targets[bank.ids >= 0], found % 3)
    torch.testing.assert_close(bank.keys[bank.ids >= 0][:, 0], (found.float() / 50).cos())


def test_per_sample_slot_is_overwritten() -> None:
    """A sample would have two features in the bank, or another's."""
    bank = FeatureBank(5, 2)
    bank.update(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([1, 2]), torch.tensor([4, 0]))
    bank.update(torch.tensor([[0.0, -1.0]]), torch.tensor([1]), torch.tensor([4]))
    assert bank.filled == 2 and bank.ids.tolist() == [0, -1, -1, -1, 4]
    assert bank.keys[4].tolist() == [0.0, -1.0] and bank.keys[0].tolist() == [0.0, 1.0]


def test_state_dict_goes_on_where_it_was() -> None:
    """A resumed run would compare with an empty bank or overwrite the wrong slots."""
    bank, fresh = FeatureBank(4, 2, mode="queue"), FeatureBank(4, 2, mode="queue")
    bank.update(torch.eye(2), torch.arange(2), torch.arange(2))
    fresh.load_state_dict(bank.state_dict())
    for each in (bank, fresh, copied := copy.deepcopy(bank)):
        each.update(torch.ones(3, 2), torch.full((3,), 7), torch.arange(2, 5))
    for name, value in bank.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]) and torch.equal(value, copied.state_dict()[name])
    assert sorted(bank.ids.tolist()) == [1, 2, 3, 4]


def test_no_gradient_flows_into_the_bank() -> None:
    """The graph of every earlier batch would stay alive."""
    bank = FeatureBank(3, 2)
    bank.update(torch.ones(1, 2, requires_grad=True), torch.tensor([0]), torch.tensor([0]))
    assert not bank.keys.requires_grad


@pytest.mark.parametrize(
    ("mode", "features", "indices", "message"),
    [
        ("per-sample", torch.ones(1, 3), torch.tensor([0]), r"features must be \(B, 2\); got \(1, 3\)"),
        ("per-sample", torch.ones(1, 2), torch.tensor([4]), r"0\.\.3.*from 4 to 4"),
        ("per-sample", torch.ones(1, 2), torch.tensor([-1]), r"0\.\.3.*from -1 to -1"),
        ("per-sample", torch.ones(2, 2), torch.tensor([1, 1]), "twice"),
        ("queue", torch.ones(1, 2), torch.tensor([-1]), "0 or larger; got -1"),
        ("queue", torch.ones(5, 2), torch.arange(5), "batch of 5 does not fit a bank of 4"),
        ("queue", torch.ones(2, 2), torch.arange(3), r"targets must be integers \(2,\)"),
        ("queue", torch.ones(1, 2), torch.tensor([0.0]), "must be integers"),
    ],
)
def test_bad_batches_are_refused(mode: str, features: torch.Tensor, indices: torch.Tensor, message: str) -> None:
    """A wrong index would land in another sample's slot."""
    with pytest.raises(ValueError, match=message):
        FeatureBank(4, 2, mode=mode).update(features, indices, indices)


def test_bad_options_are_refused() -> None:
    """A bank without slots, or of an unknown kind, would be made."""
    with pytest.raises(ValueError, match="at least 1; got 0 and 2"):
        FeatureBank(0, 2)
    with pytest.raises(ValueError, match="mode must be one of per-sample, queue; got 'ring'"):
        FeatureBank(3, 2, mode="ring")
