"""`assay data`: what data sets there are, where they are looked up, and fetching one."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    name: Annotated[str | None, typer.Argument(help="A data set to fetch into the user's cache.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List data sets, or fetch one."""
    from assay.data.files import catalogue, fetch, search_path

    if name is not None:
        paths = fetch(name)
        typer.echo("\n".join(map(str, paths)) or f"{name} ships with a package; nothing to fetch")
        return
    rows = catalogue()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    from assay.cli._tables import console

    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in ("data set", "state", "where"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["name"], row["state"], escape(row["where"]))
    console.print(table)
    console.print("looked up in: " + ", ".join(str(p) for p in search_path()), highlight=False, markup=False)
