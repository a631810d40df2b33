"""`make new` and `make check PAPER=`: the scaffold and the narrow check."""

from __future__ import annotations

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_scaffold_is_whole_and_its_test_fails(tmp_path, monkeypatch, capsys):
    """A new paper gets card, study, part, page, fragment and a test that fails until somebody writes the part."""
    tool = _tool("new_paper")
    sources = tool.seams()
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "seams", lambda: sources)
    assert tool.main("demo-paper", "losses") == 0
    folder = tmp_path / "src/assay/papers/demo_paper"
    card = tomllib.loads((folder / "card.toml").read_text())
    assert card["id"] == "demo-paper" and card["status"] == "planned"
    for path in tmp_path.rglob("*.py"):
        ast.parse(path.read_text())
    assert "raise AssertionError" in (tmp_path / "tests/losses/test_demo_paper.py").read_text()
    (folder / "study.py").write_text("mine")
    assert tool.main("demo-paper", "losses") == 0
    assert (folder / "study.py").read_text() == "mine", "what exists is left alone"


@pytest.mark.parametrize(
    ("paper", "seam"), [("Demo Paper", "losses"), ("demo", "loss"), ("", "losses"), ("demo", "lab")]
)
def test_a_bad_name_or_seam_writes_nothing(tmp_path, monkeypatch, capsys, paper, seam):
    """A typing error must not leave folders behind."""
    tool = _tool("new_paper")
    sources = tool.seams()
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "seams", lambda: sources)
    assert tool.main(paper, seam) == 2
    assert not list(tmp_path.iterdir())


def test_the_narrow_check_knows_what_a_paper_touches():
    """`make check PAPER=` must cover the part, its tests and the card, and little else."""
    from assay.cards import load_card

    tool = _tool("check_paper")
    card = load_card("collapse-losses")
    names = {path.name for path in tool.sources(card)}
    assert {"focal.py", "neural_collapse.py", "collapse_losses"} <= names
    assert any(test.endswith("tests/losses/test_focal.py") for test in tool.tests(card))
