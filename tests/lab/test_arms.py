"""Arms describe themselves as plain data."""

from __future__ import annotations

import functools
import json
import pickle

import pytest
import torch

from assay.errors import InvalidInput
from assay.lab.arms import Arm, Call, describe
from assay.lab.record import Record
from assay.streams import Streams


def double(streams, value, fail=False):
    """Return twice the value; raise when asked to."""
    if fail:
        raise FloatingPointError("diverged")
    return {"twice": 2 * value}


def test_a_call_runs_its_function_and_says_what_it_ran():
    """The description must hold everything that decides the outcome, or two trials would share a key."""
    arm = Call(double, {"value": 4})
    assert isinstance(arm, Arm)
    assert arm(Streams("t", 0)) == Record(metrics={"twice": 8.0})
    assert arm.describe() == {"function": f"{__name__}:double", "value": 4}
    assert arm.but(value=5).describe()["value"] == 5
    assert json.dumps(arm.describe())


def test_a_call_can_be_pickled():
    """Workers get arms by pickle."""
    assert pickle.loads(pickle.dumps(Call(len, {}))).function is len


def test_parts_are_described_by_their_importable_names():
    """Objects work wherever names do, as long as they can be found again."""
    partial = functools.partial(torch.optim.SGD, lr=0.1)
    assert describe(partial) == {"function": "torch.optim.sgd:SGD", "arguments": {"lr": 0.1}}
    assert describe((1, None, {"a": torch.nn.ReLU})) == [1, None, {"a": "torch.nn.modules.activation:ReLU"}]


@pytest.mark.parametrize("value", [lambda x: x, torch.nn.Linear(1, 1)])
def test_what_has_no_name_is_refused(value):
    """A lambda or an instance would give a key that no later run finds."""
    with pytest.raises(InvalidInput, match="importable name"):
        describe(value)
