from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_arms import Draw, Tuned, make_study

from assay.errors import InvalidInput
from assay.lab.plan import PROTOCOL, canonical, plain_study, plan, plan_final, plan_tuning, trial_key

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
@settings(max_examples=50)
def test_canonical_text_restores_the_data_and_ignores_the_order_of_keys(data):
    """Two descriptions that are equal would get different keys, or two that differ the same one."""

    def reverse(value):
        if isinstance(value, dict):
            return {k: reverse(v) for k, v in reversed(value.items())}
        return [reverse(v) for v in value] if isinstance(value, list) else value

    assert json.loads(canonical(data)) == data
    assert canonical(reverse(data)) == canonical(data)
    assert canonical(data).isascii()


def test_a_key_is_the_hash_of_what_decides_the_outcome():
    """Keys would differ from those of earlier versions of Assay, and every stored trial would be run again."""
    text = f'{{"arm":{{"betas":[0.9,1],"name":"\\u00e9"}},"protocol":{PROTOCOL},"scale":"desk","seed":3,"task":"t","version":2}}'
    key = trial_key({"name": "é", "betas": (0.9, 1)}, 3, "desk", "t", 2)
    assert key == hashlib.sha256(text.encode()).hexdigest()


def test_every_part_of_a_key_matters():
    """A change of seed, scale, task, version or arm would silently reuse another trial."""
    base = {"description": {"lr": 0.1}, "seed": 0, "scale": "desk", "task": "t", "version": 1}
    changes = [{"description": {"lr": 0.2}}, {"seed": 1}, {"scale": "smoke"}, {"task": "u"}, {"version": 2}, {}]
    assert len({trial_key(**(base | change)) for change in changes}) == len(changes)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (math.nan, "description['a'][1] is nan"),
        (math.inf, "'inf'"),
        (np.float32(1), "float32"),
        (object(), "plain data only"),
        ({1: 2}, "the key 1"),
        ({1, 2}, "set"),
        (b"x", "bytes"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_place(value, place):
    """A description with an object in it would get another key in each process, or one that JSON cannot hold."""
    with pytest.raises(InvalidInput) as error:
        canonical({"a": [0, value]})
    assert place in str(error.value)


def test_the_error_of_an_arm_names_the_arm():
    """A user with 20 arms would not know which one is meant."""
    with pytest.raises(InvalidInput, match="arm 'odd'"):
        plan(make_study({"odd": Draw(shift=math.nan)}), task="t", scale="smoke", seeds=1)


def test_a_plan_has_each_arm_with_each_seed_once_and_pairs_come_together():
    """A trial would be missing or run twice, or an interrupted run would hold no whole pair."""
    trials = plan(make_study({"a": Draw(0.0), "b": Draw(1.0)}), task="t", scale="smoke", seeds=3)
    assert [(t.seed, t.arm) for t in trials] == [(s, a) for s in range(3) for a in "ab"]
    assert len({t.key for t in trials}) == 6
    assert {t.stage for t in trials} == {"final"}


def test_another_arm_and_another_name_move_no_key():
    """Adding or renaming an arm would throw away finished trials."""
    one = plan(make_study({"a": Draw(0.0)}), task="t", scale="smoke", seeds=3)
    two = plan(make_study({"new": Draw(1.0), "renamed": Draw(0.0)}), task="t", scale="smoke", seeds=3)
    assert [t.key for t in one] == [t.key for t in two if t.arm == "renamed"]


def test_tuning_trials_use_their_own_seeds_and_finals_of_tuned_arms_are_not_known_yet():
    """Tuning would see the seeds of the comparison."""
    study = make_study({"a": Tuned(grid=(0.1, 0.2)), "b": Draw()}, tune_seeds=2)
    trials = plan(study, task="t", scale="smoke", seeds=2)
    assert [(t.arm, t.seed, t.stage) for t in trials] == [
        *[("a", 10_000, "tune"), ("a", 10_001, "tune")] * 2,
        ("b", 0, "final"),
        ("b", 1, "final"),
    ]


def test_unequal_tuning_budgets_are_refused():
    """One arm would be tuned harder than another."""
    study = make_study({"a": Tuned(grid=(0.1, 0.2)), "b": Tuned(grid=(0.1,)), "c": Draw()})
    with pytest.raises(InvalidInput, match="'a' 2, 'b' 1"):
        plan_tuning(study, task="t", scale="smoke")


@pytest.mark.parametrize("seeds", [0, -1, 2.0, True, 10_001])
def test_unusable_numbers_of_seeds_are_refused(seeds):
    """Zero seeds would give an empty verdict; too many would meet the tuning seeds."""
    with pytest.raises(InvalidInput, match="seeds must be"):
        plan(make_study({"a": Draw()}), task="t", scale="smoke", seeds=seeds)


def test_a_plain_study_is_json_and_names_its_trials():
    """A store could not hold it, or a page made from it would mix trials of older versions."""
    study = make_study({"a": Draw()}, sources={"shift": "section 3"})
    trials = plan_final(study, study.arms, task="t", scale="smoke", seeds=2)
    found = plain_study(study, trials, {})
    assert json.loads(json.dumps(found)) == found
    assert [t["key"] for t in found["trials"]] == [t.key for t in trials]
    assert found["arms"]["a"]["description"] == {"arm": "draw", "shift": 0.0}
    assert found["seeds"] == 2


def test_planning_imports_no_torch():
    """`assay show --plan` would take seconds."""
    code = (
        "import sys; import assay.lab.plan, assay.lab.store, assay.lab.run, assay.lab.environment;"
        "assert not {'torch', 'joblib', 'ray', 'distributed'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
