"""Cards: all there, well formed, true to the code, quick to read, and clear when they are wrong."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.cards import (
    SEAMS,
    SUMMARY_LENGTH,
    Card,
    load_card,
    load_cards,
    load_comparisons,
    load_verdict,
    study_module,
)
from assay.errors import CardError, InvalidInput, UnknownName

CARDS = load_cards()
IMPLEMENTED = [card for card in CARDS if card.status == "implemented"]
GOOD = {
    "id": "some-paper",
    "title": "Some Paper",
    "seam": "losses",
    "authors": ["Ada Example"],
    "year": 2030,
    "venue": "preprint",
    "reference": "arXiv:3001.00001",
    "summary": "What it does.",
    "status": "planned",
    "parts": [],
    "probes": [],
    "equations": [],
}


def _write(folder: Path, fields: dict[str, object], name: str = "some_paper") -> Path:
    path = folder / name / "card.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    # JSON's strings, numbers and lists of strings are TOML too.
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items()))
    return path


def _resolve(dotted: str) -> object:
    package, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(package), name)


def test_all_papers_have_a_card() -> None:
    """A paper would be missing from the list and from the report."""
    assert len(CARDS) >= 108
    ids = [card.id for card in CARDS]
    assert ids == sorted(set(ids))
    assert [card.folder.name for card in CARDS] == [paper.replace("-", "_") for paper in ids]
    folders = {path.name for path in CARDS[0].folder.parent.iterdir() if path.is_dir() and path.name[0] not in "_."}
    assert folders == {card.folder.name for card in CARDS}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_card_is_complete(card: Card) -> None:
    """A page would have holes, or a folder would be no package."""
    assert card.authors and card.title and card.venue and card.reference and card.seam in SEAMS
    assert 1900 < card.year < 2100
    assert 30 <= len(card.summary) <= SUMMARY_LENGTH and card.summary.endswith(".")
    assert (card.folder / "__init__.py").is_file()


def test_summaries_and_references_are_unique() -> None:
    """One would be a copy of another paper's."""
    for field in ("title", "reference", "summary"):
        values = [getattr(card, field) for card in CARDS]
        assert len(set(values)) == len(values), field


@pytest.mark.parametrize("card", IMPLEMENTED, ids=lambda card: card.id)
def test_implemented_card_is_true(card: Card) -> None:
    """The card would name parts that are not there, or promise a study that is not."""
    assert card.parts or card.probes, "an implemented paper names what implements it"
    for dotted in (*card.parts, *card.probes):
        assert callable(_resolve(dotted)), dotted
    described = {equation.split(": ", 1)[0] for equation in card.equations}
    for dotted in described:
        _resolve(dotted)
    assert described, "an implemented paper says which equations its parts implement"
    assert callable(study_module(card).study)


@pytest.mark.parametrize("card", IMPLEMENTED, ids=lambda card: card.id)
def test_stored_verdict_belongs_to_the_paper(card: Card) -> None:
    """Evidence would be another paper's, or unreadable."""
    verdict = load_verdict(card)
    if not verdict:
        pytest.skip("no evidence yet")
    assert verdict["status"] in ("holds", "fails", "inconclusive") and verdict["seeds"] >= 1
    assert json.loads((card.folder / "evidence.json").read_text())["paper"] == card.id


def test_comparisons_are_found_but_are_no_papers() -> None:
    """A comparison could not be run by its name, or would be counted as a paper."""
    comparisons = load_comparisons()
    assert {card.id for card in comparisons} == {"learning-rules", "optimizers"}
    for card in comparisons:
        assert card.comparison and load_card(card.id) == card and card not in CARDS
        assert callable(study_module(card).study)
        verdict = load_verdict(card)
        assert not verdict or json.loads((card.folder / "evidence.json").read_text())["paper"] == card.id
    assert not any(card.comparison for card in CARDS)


def test_reading_all_cards_is_quick_and_imports_nothing_heavy() -> None:
    """`assay list` would take seconds."""
    code = (
        "import sys, assay.cards as c; n = len(c.load_cards()); c.load_card('ntk');"
        "print(n, [m for m in ('torch', 'numpy', 'assay.lab') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == f"{len(CARDS)} []"
    durations = []
    for _ in range(5):
        start = time.process_time()
        load_cards()
        durations.append(time.process_time() - start)
    assert min(durations) < 0.2 * max(1.0, len(CARDS) / 108)


def test_unknown_paper_lists_near_ones() -> None:
    """A typing error would be hard to see."""
    with pytest.raises(UnknownName, match="'groking-edge'; did you mean grokking-edge"):
        load_card("groking-edge")
    with pytest.raises(UnknownName, match="assay list"):
        load_card("qqqqqqqq")
    with pytest.raises(UnknownName):
        load_card("../papers/ntk")


def test_good_card_round_trips(tmp_path: Path) -> None:
    """Fields would be dropped or change type."""
    _write(tmp_path, GOOD | {"status": "implemented", "stability": "stable", "official_code": "owner/name"})
    (card,) = load_cards(tmp_path)
    assert card == load_card("some-paper", tmp_path)
    for name, value in GOOD.items():
        if name != "status":
            assert getattr(card, name) == (tuple(value) if isinstance(value, list) else value)
    assert (card.status, card.stability, card.official_code) == ("implemented", "stable", "owner/name")


WRONG = [
    ({"year": "2030"}, "year"),
    ({"year": True}, "year"),
    ({"title": ""}, "title"),
    ({"title": 3}, "title"),
    ({"authors": "Ada Example"}, "authors"),
    ({"authors": ["Ada", 3]}, "authors"),
    ({"seam": "loses"}, "seam"),
    ({"status": "done"}, "status"),
    ({"summary": "x" * 161}, "summary"),
    ({"summary": "two\nlines"}, "summary"),
    ({"parts": ["FocalLoss"]}, "parts"),
    ({"probes": ["assay.probes"]}, "probes"),
    ({"equations": ["assay.losses.FocalLoss"]}, "equations"),
    ({"official_code": "https://example.org"}, "official_code"),
    ({"id": "other-paper"}, "id"),
    ({"stability": "stable"}, "stability"),
    ({"status": "implemented"}, "stability"),
    ({"sumary": "x"}, "sumary.*did you mean 'summary'"),
]


@pytest.mark.parametrize(("change", "field"), WRONG, ids=[f"{next(iter(w))}-{i}" for i, (w, _) in enumerate(WRONG)])
def test_malformed_card_names_file_and_field(tmp_path: Path, change: dict[str, object], field: str) -> None:
    """A wrong card would surface as a traceback in some page."""
    path = _write(tmp_path, GOOD | change)
    with pytest.raises(CardError, match=f"(?s)some_paper.card.toml: .*{field}") as caught:
        load_cards(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("field", GOOD)
def test_missing_field_is_named(tmp_path: Path, field: str) -> None:
    """A missing field would become an attribute error."""
    _write(tmp_path, {name: value for name, value in GOOD.items() if name != field})
    with pytest.raises(CardError, match=f"field '{field}' is missing"):
        load_cards(tmp_path)


# No deadline: a busy machine may stop for a while.
@settings(deadline=None)
@given(st.binary(max_size=60))
def test_damaged_file_is_a_card_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """A half-written card would end in a traceback."""
    folder = tmp_path_factory.mktemp("papers")
    _write(folder, GOOD).write_bytes(content)
    with pytest.raises(CardError, match=r"card\.toml"):
        load_cards(folder)


def test_planned_paper_has_no_study_and_implemented_needs_one(tmp_path: Path) -> None:
    """The user would see an import error."""
    planned = next(card for card in CARDS if card.status == "planned")
    with pytest.raises(InvalidInput, match="planned"):
        study_module(planned)
    with pytest.raises(CardError, match="no study"):
        study_module(replace(planned, status="implemented", folder=tmp_path / "no_such_paper"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"verdict": 3}', '{"verdict": {"status": "holds"}}'])
def test_damaged_evidence_is_one_clear_error(tmp_path: Path, content: str) -> None:
    """`assay list` would end in a traceback because of one file."""
    (tmp_path / "evidence.json").write_text(content)
    with pytest.raises(CardError, match=r"evidence\.json"):
        load_verdict(replace(CARDS[0], folder=tmp_path))


def test_verdict_is_read_with_its_scale_and_seeds(tmp_path: Path) -> None:
    """The list would show a verdict without saying what it rests on."""
    card = replace(CARDS[0], folder=tmp_path)
    assert load_verdict(card) == {}
    evidence = {"verdict": {"status": "holds", "outcomes": []}, "scale": "desk", "seeds": 6, "claim": "c"}
    (tmp_path / "evidence.json").write_text(json.dumps(evidence))
    assert load_verdict(card) == {"status": "holds", "outcomes": [], "scale": "desk", "seeds": 6}
