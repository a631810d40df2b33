"""Every example runs, is short, and ends in the number that it prints."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
LIMITS = {
    "use_a_kernel": lambda loss: loss < 2.5,
    "use_a_loss": lambda accuracy: accuracy > 0.9,
    "use_a_rule": lambda accuracy: accuracy > 0.9,
    "use_a_transform": lambda accuracy: accuracy > 0.7,
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_learns(path, capsys, tmp_path, monkeypatch):
    """A user copies these loops: each must run as it stands and reach what a working part reaches."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert len(path.read_text().splitlines()) <= 50
    if path.stem in LIMITS:
        assert LIMITS[path.stem](float(re.findall(r"[-\d.]+", printed)[-1])), printed
