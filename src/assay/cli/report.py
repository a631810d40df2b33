"""`assay report`: static HTML from stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command", "write_report"]


def write_report(out: Path, fresh: list[dict[str, Any]] | None = None) -> Path:
    """Build the report from shipped evidence and fresher results, and return its index page."""
    from dataclasses import asdict

    from assay.cards import load_cards, load_comparisons
    from assay.lab.evidence import load_evidence
    from assay.lab.report import build_report
    from assay.lab.results import strict_json

    cards = [*load_cards(), *load_comparisons()]
    shipped = [found for card in cards if (found := load_evidence(card.folder)) is not None]
    # Of one paper at one scale the later result is shown, so fresh runs take the place of shipped ones.
    results = shipped + [strict_json(found) for found in fresh or []]
    plain = [
        {k: v for k, v in asdict(card).items() if k != "folder"} | {"comparison": card.comparison} for card in cards
    ]
    return build_report(plain, results, out)


def command(
    papers: Annotated[
        list[str] | None, typer.Argument(help="Papers whose stored runs to show; all by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("report"),
    store: Annotated[Path | None, typer.Option(help="SQLite file of finished trials.")] = None,
) -> None:
    """Build the report: shipped evidence, and newer runs where the store has them."""
    from assay.cards import load_card
    from assay.lab.store import default_store

    for paper in papers or []:
        load_card(paper)
    path = store or default_store()
    fresh = _stored_results(path, papers) if path.exists() else []
    typer.echo(f"Report: {write_report(out, fresh).resolve()}")


def _stored_results(path: Path, papers: list[str] | None) -> list[dict[str, Any]]:
    """Return the results that a store holds, one per study and scale."""
    from assay.cards import load_cards, load_comparisons
    from assay.cli.run import command_line
    from assay.lab.results import result
    from assay.lab.store import Store

    titles = {card.id: card.title for card in (*load_cards(), *load_comparisons())}
    with Store(path, create=False) as store:
        studies = [study for study in store.studies() if study.id in (papers or titles)]
        return [
            result(store, s, title=titles[s.id], command=command_line(s.id, s.scale, s.plan["seeds"])) for s in studies
        ]
