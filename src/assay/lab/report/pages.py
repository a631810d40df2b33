"""From cards and results to a folder of pages: index.html, studies/<id>.html, runs/<name>.html, assets/.

A pure function of its input: the same cards and results give the same bytes. Jinja escapes every value; file names and
addresses come from `links`; no text of a record reaches a script or a style sheet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from assay.lab.report import figures, gallery, study, text

__all__: list[str] = []

TEMPLATES = Path(__file__).parent / "templates"
ASSETS = ("style.css", "gallery.js", "study.js")


def build_report(cards: list[dict[str, Any]], results: list[dict[str, Any]], out: Path) -> Path:
    """Write the report as static pages that open from disk.

    Args:
        cards: The papers, one plain dict a card, in any order.
        results: Plain results (evidence with "trials"). Of several of one paper and scale the last one counts. Results
            of kind "train" get pages of their own; a study without a card is shown under its own title.
        out: The folder to write; made if it does not exist.

    Returns:
        The path of `index.html`.

    Raises:
        InvalidInput: If a card has no id, or a verdict has a status that is none.

    Example:
        >>> import tempfile
        >>> card = {"id": "focal", "title": "Focal loss", "seam": "losses", "status": "planned"}
        >>> build_report([card], [], Path(tempfile.mkdtemp())).name
        'index.html'
    """
    out = Path(out)
    for name, page in _pages(cards, results):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", newline="\n")
    return out / "index.html"


def _pages(cards: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield every file of the report as (path below the folder, text)."""
    for name in ASSETS:
        yield f"assets/{name}", (TEMPLATES / name).read_text(encoding="utf-8")
    papers, runs = gallery.entries(cards, results)
    template = _templates().get_template("study.html.j2")
    for entry in (*papers, *runs):
        for page, result in entry.pages():
            yield page, template.render(root="../", entry=entry, page=page, study=study.page(result))
    index = _templates().get_template("index.html.j2")
    yield "index.html", index.render(root="", gallery=gallery.gallery(papers, runs))


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=text.count, label=text.label, number=text.number, plural=text.plural, setting=text.setting
    )
    environment.globals.update(
        arm_colour=figures.colour, arm_dash=figures.dash, arm_marker=figures.marker, states=gallery.STATES
    )
    return environment
