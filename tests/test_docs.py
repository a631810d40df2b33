"""The docs' snippets run, and their commands are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from assay.cards import load_cards, load_verdict
from assay.cli.main import app

ROOT = Path(__file__).parents[1]
FOLDERS = ("guides", "papers", "comparisons")
PAGES = sorted([ROOT / "docs" / "index.md", *(page for name in FOLDERS for page in ROOT.glob(f"docs/{name}/*.md"))])


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who copies the page would get an error."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "snippet"}
    for block in _blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_parse(page: Path) -> None:
    """The page would show a verb or an option that does not exist."""
    group = typer.main.get_command(app)
    for block in _blocks(page, "console"):
        for line in block.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["assay"]:
                context = group.make_context("assay", words[1:], resilient_parsing=True)
                _, command, rest = group.resolve_command(context, words[1:])  # type: ignore[attr-defined]
                command.make_context(words[1], rest)


def test_pages_of_papers_tell_their_verdict() -> None:
    """A page would leave out, or type by hand, what the evidence says."""
    for card in load_cards():
        page = ROOT / "docs" / "papers" / f"{card.id}.md"
        if load_verdict(card):
            assert "<!-- evidence:begin -->" in page.read_text(encoding="utf-8"), page.name
