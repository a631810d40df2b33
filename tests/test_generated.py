"""What follows from code, cards and evidence is up to date, and the generator writes what it should."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import markdown
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The module tools/generate.py."""
    specification = importlib.util.spec_from_file_location("generate", ROOT / "tools" / "generate.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_nothing_is_out_of_date() -> None:
    """A page would tell of parts, papers or verdicts that have changed since."""
    command = [sys.executable, str(ROOT / "tools" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_stub_names_every_public_object_once(generate: ModuleType) -> None:
    """Type checkers and editors would not know a part."""
    for folder in generate.seams():
        seam = importlib.import_module(f"assay.{folder.name}")
        names = [line.split(" as ")[-1] for line in generate.stub(folder).splitlines() if " import " in line]
        assert sorted(names) == sorted(seam.__all__)


def test_gallery_shows_every_paper(generate: ModuleType) -> None:
    """A paper would be missing from the docs."""
    page = generate.gallery()
    for card in generate.cards():
        assert generate._cell(card.title) in page and generate._cell(card.summary) in page


def test_markers_are_filled_and_the_rest_kept(generate: ModuleType) -> None:
    """Hand-written text around a generated block would be lost."""
    text = "before\n<!-- counts:begin -->\nold\nold\n<!-- counts:end -->\nafter\n<!-- other:begin -->\nx\n<!-- other:end -->\n"
    filled = generate._filled(text, {"counts": "new \\1"})
    assert filled == text.replace("old\nold", "new \\1")
    assert generate._filled(filled, {"counts": "new \\1"}) == filled
    empty = "  # nav:begin, by a tool\n  # nav:end\n"
    assert generate._filled(empty, {"nav": "  - x"}) == "  # nav:begin, by a tool\n  - x\n  # nav:end\n"


def test_guides_tell_what_arms_reached(generate: ModuleType) -> None:
    """A guide would show another number than the trials that were recorded."""
    arm = "wide-long/focal"
    trials = json.loads((generate.SOURCE / "papers" / "collapse_losses" / "trials.json").read_text())
    reached = [t["metrics"]["test_accuracy"] for t in trials if t["arm"] == arm and t["stage"] == "final"]
    text = f"a\n<!-- means:begin collapse-losses | test_accuracy | {arm} -->\nold\n<!-- means:end -->\nb\n"
    filled = generate._with_tables(text)
    assert f"| {np.mean(reached):.3g} ± {np.std(reached, ddof=1):.3g} | {len(reached)} |" in filled
    assert "old" not in filled and generate._with_tables(filled) == filled
    with pytest.raises(ValueError, match="no evidence of an arm"):
        generate._with_tables(text.replace(arm, "nonsense"))


def test_pivots_tell_what_methods_reached(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison's table would mix up tasks or methods, or count a diverged trial as a result."""
    trials = [
        {"arm": f"{task}/{method}", "status": status, "metrics": {"accuracy": value}, "resources": {"seconds": 1.0}}
        for task, method, values in [("x", "a", (0.5, 0.7)), ("y", "a", (0.1, 0.3)), ("x", "b", (0.9, 0.9))]
        for value, status in zip(values, ("done", "diverged" if (task, method) == ("x", "b") else "done"), strict=True)
    ]
    monkeypatch.setattr(generate, "_final_trials", lambda paper: trials)
    lines = generate.pivot("p", "accuracy", ["y", "x"], ["a", "b"]).splitlines()
    assert lines[0] == "| accuracy | y | x |"
    assert lines[2] == "| a | 0.2 ± 0.141 | 0.6 ± 0.141 |"
    assert lines[3].startswith("| b | — |") and "(1 of 2 diverged)" in lines[3]
    text = "<!-- pivot:begin p | seconds | x | a -->\nold\n<!-- pivot:end -->\n"
    assert "| a | 1 ± 0 |" in generate._with_tables(text) and "old" not in generate._with_tables(text)
    with pytest.raises(ValueError, match="no evidence of a method"):
        generate.pivot("p", "accuracy", ["x"], ["nonsense"])


def test_cells_cannot_break_the_table(generate: ModuleType) -> None:
    """A title with a bar or markup in it would shift columns, become a link or show the backslash before it."""
    title = "a | b [c](d) <e> f < 0.1 > g *h* _i_ `j`"
    page = markdown.markdown(f"| x | y |\n| --- | --- |\n| {generate._cell(title)} | z |", extensions=["tables"])
    assert [html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", page)] == [title, "z"]


def test_evidence_block_repeats_the_stored_numbers(generate: ModuleType, tmp_path: Path) -> None:
    """A page would show other numbers than those that were recorded."""
    (tmp_path / "evidence.json").write_text(
        '{"claim": "C.", "scale": "desk", "seeds": 7, "limits": "L.", "covers": "the split", "recorded": "2030-01-02T03:04",'
        '"command": "assay run x", "protocol": 1, "environment": {"torch": "9.9", "processor": "P"}, "verdict": {"status":'
        '"fails", "method": "M", "outcomes": [{"text": "a > b", "status": "fails", "effect": -0.12345, "interval":'
        '[null, -0.1], "n": 7}]}}'
    )
    page = generate.evidence(replace(generate.cards()[0], folder=tmp_path))
    assert r"| a \> b | fails | -0.123 | [open, -0.1] | 7 |" in page
    for expected in ("fails (desk, n = 7)", "2030-01-02", "`assay run x`", "torch 9.9", "L.", "C."):
        assert expected in page
