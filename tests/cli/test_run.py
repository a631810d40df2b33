"""`assay run`."""

from __future__ import annotations

import json

import pytest


def test_json_is_one_object_per_study(assay):
    """Programs read this; a verdict of any kind is exit code 0, and a second run resumes everything."""
    arguments = ("run", "grokking-edge", "--scale", "smoke", "--seeds", "2", "--jobs", "1", "--json")
    first, second = assay(*arguments), assay(*arguments)
    assert first.code == second.code == 0
    a, b = json.loads(first.out), json.loads(second.out)
    assert set(a) == {"id", "verdict", "expectations", "trials", "resumed", "seconds"}
    assert all(set(e) == {"text", "status", "effect", "interval", "n"} for e in a["expectations"])
    assert a["resumed"] == 0 and b["resumed"] == b["trials"] == a["trials"] > 0
    assert {k: a[k] for k in ("verdict", "expectations")} == {k: b[k] for k in ("verdict", "expectations")}


@pytest.mark.parametrize("state", ["corrupted", "truncated", "folder"])
def test_an_unusable_store_is_one_clear_error(assay, tmp_path, state):
    """A store that cannot be used must be said in one line, and left as it was."""
    store = tmp_path / "store.sqlite"
    if state == "folder":
        store.mkdir()
    elif state == "corrupted":
        store.write_bytes(b"not a database, but somebody's notes" * 100)
    else:
        assay("run", "grokking-edge", "--scale", "smoke", "--seeds", "1", "--jobs", "1")
        store.write_bytes(store.read_bytes()[:5000])
    before = store.read_bytes() if store.is_file() else None
    called = assay("run", "grokking-edge", "--scale", "smoke", "--seeds", "1", "--jobs", "1")
    assert called.code == 2 and str(store) in called.err and "Traceback" not in called.err
    assert before is None or store.read_bytes() == before
