"""`assay list`: every paper with its parts, probes and verdict, without importing torch."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["command", "rows"]


def rows() -> list[dict[str, Any]]:
    """Return one row per paper: the card's fields and, where there is evidence, its verdict, scale and seeds."""
    from assay.cards import load_cards, load_verdict

    found = []
    for card in load_cards():
        verdict = load_verdict(card)
        found.append(
            {
                "id": card.id,
                "title": card.title,
                "seam": card.seam,
                "status": card.status,
                "parts": list(card.parts),
                "probes": list(card.probes),
                "verdict": verdict.get("status"),
                "scale": verdict.get("scale"),
                "seeds": verdict.get("seeds"),
            }
        )
    return found


def command(
    seam: Annotated[str | None, typer.Option(help="Only this seam, such as losses.")] = None,
    status: Annotated[str | None, typer.Option(help="Only implemented or planned papers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the papers."""
    chosen = [
        row for row in rows() if (seam is None or row["seam"] == seam) and (status is None or row["status"] == status)
    ]
    if not chosen:
        from assay.errors import UnknownName

        seams = ", ".join(sorted({row["seam"] for row in rows()}))
        raise UnknownName(f"no paper with seam {seam!r} and status {status!r}; seams are {seams}")
    if as_json:
        typer.echo(json.dumps(chosen, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("paper", "seam", "status", "verdict", "title"):
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    for row in chosen:
        verdict = f"{row['verdict']} ({row['scale']}, n={row['seeds']})" if row["verdict"] else "-"
        table.add_row(row["id"], row["seam"], row["status"], verdict, row["title"])
    Console().print(table)
    implemented = sum(row["status"] == "implemented" for row in chosen)
    typer.echo(f"{len(chosen)} papers, {implemented} implemented. `assay show ID` tells more of one.")
