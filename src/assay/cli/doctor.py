"""`assay doctor`: versions, cores, extras, data and store, and what to do about what is missing."""

from __future__ import annotations

import importlib.util
import os
from typing import Annotated, Any

import typer

__all__ = ["command"]

EXTRAS = {
    "graph": "torch_geometric",
    "triton": "triton",
    "lightning": "lightning",
    "transformers": "transformers",
    "ray": "ray",
    "dask": "distributed",
}


def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check this machine."""
    found = _examine()
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    from assay.cli._tables import console

    table = Table(show_header=False, box=None, pad_edge=False)
    for group, entries in found.items():
        for i, (name, value) in enumerate(entries.items()):
            table.add_row(f"[bold]{group}[/]" if i == 0 else "", name, escape(str(value)))
    console.print(table)


def _examine() -> dict[str, dict[str, Any]]:
    from assay.data.files import catalogue, search_path
    from assay.lab.environment import environment
    from assay.lab.store import default_store

    extras = {
        name: "installed" if importlib.util.find_spec(module) else f"missing: pip install 'assay[{name}]'"
        for name, module in EXTRAS.items()
    }
    path = default_store()
    return {
        "environment": environment(),
        "cores": {"usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()},
        "extras": extras,
        "data": {row["name"]: row["state"] for row in catalogue()} | {"looked up in": [str(p) for p in search_path()]},
        "store": {"path": str(path), "state": _store_state(path)},
    }


def _store_state(path: Any) -> str:
    from assay.errors import StoreError
    from assay.lab.store import Store

    if not path.exists():
        return "not there yet; the first run makes it"
    try:
        with Store(path) as store:
            return f"{store.count()} trials"
    except StoreError as error:
        return str(error)
