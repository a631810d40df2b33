"""`assay show`."""

from __future__ import annotations

import json

from assay.cards import load_card


def test_a_card_is_shown_whole(assay):
    """Title, parts and equations must be there, for people and for programs."""
    card = load_card("grokking-edge")
    shown = json.loads(assay("show", "grokking-edge", "--json").out)
    assert shown["title"] == card.title and shown["parts"] == list(card.parts)
    assert card.title in assay("show", "grokking-edge").out.replace("\n", " ")


def test_the_plan_shows_keys_before_anything_runs(assay, tmp_path):
    """A trial's key is public: 64 digits, unique, and showing them makes no store."""
    plan = json.loads(assay("show", "grokking-edge", "--plan", "--scale", "smoke", "--json").out)["plan"]
    keys = [trial["key"] for trial in plan]
    assert all(len(key) == 64 for key in keys) and len(set(keys)) == len(keys) > 1
    assert not (tmp_path / "store.sqlite").exists()
