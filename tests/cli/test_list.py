"""`assay list`."""

from __future__ import annotations

import json
import subprocess
import sys

from assay.cards import load_cards


def test_json_has_every_paper_with_the_promised_fields(assay):
    """Programs read this: an array of objects with exactly these keys, one per card."""
    rows = json.loads(assay("list", "--json").out)
    assert [row["id"] for row in rows] == [card.id for card in load_cards()]
    keys = {"id", "title", "seam", "status", "parts", "probes", "verdict", "scale", "seeds"}
    assert all(set(row) == keys for row in rows)


def test_filters_are_conjunctions(assay):
    """--seam and --status must both hold."""
    rows = json.loads(assay("list", "--seam", "losses", "--status", "implemented", "--json").out)
    assert {"collapse-losses", "grokking-edge"} <= {row["id"] for row in rows}
    assert {(row["seam"], row["status"]) for row in rows} == {("losses", "implemented")}


def test_listing_imports_neither_torch_nor_matplotlib():
    """The list has to be there at once: what takes seconds to import may not be imported."""
    code = (
        "import sys; sys.argv = ['assay', 'list', '--json']\n"
        "from assay.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.stderr.write(','.join({'torch', 'matplotlib', 'scipy', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_the_table_counts_what_it_lists(assay):
    """The closing line is what a reader remembers."""
    assert f"{len(load_cards())} papers" in assay("list").out
