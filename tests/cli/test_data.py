"""`assay data`."""

from __future__ import annotations

import json


def test_data_sets_that_ship_are_ready(assay, monkeypatch):
    """What comes with a dependency must be ready on every machine; the rest says how to get it."""
    monkeypatch.delenv("ASSAY_DATA", raising=False)
    rows = {row["name"]: row for row in json.loads(assay("data", "--json").out)}
    assert {"digits", "breast-cancer", "wine", "diabetes", "stdlib-text"} <= {
        name for name, row in rows.items() if row["state"] == "ready"
    }
    assert rows["mnist"]["state"] == "missing"
    assert "looked up in" in assay("data").out


def test_fetching_what_ships_says_so(assay):
    """Nothing to download is not an error."""
    assert "nothing to fetch" in assay("data", "digits").out
