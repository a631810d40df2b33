"""`assay doctor`."""

from __future__ import annotations

import json

import torch


def test_the_doctor_sees_this_machine(assay):
    """Versions, cores, extras, data and store: what a bug report needs."""
    found = json.loads(assay("doctor", "--json").out)
    assert found["environment"]["torch"] == torch.__version__
    assert set(found) == {"environment", "cores", "extras", "data", "store"}


def test_the_doctor_says_what_is_wrong_with_a_store(assay, tmp_path):
    """A broken store is a finding, not a crash."""
    (tmp_path / "store.sqlite").write_text("not a store at all, just text that somebody put there")
    called = assay("doctor")
    assert called.code == 0 and "not an Assay store" in called.out.replace("\n", " ")
