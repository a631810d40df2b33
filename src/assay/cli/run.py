"""`assay run`: put papers' claims to the test and say the verdict."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.errors import InvalidInput

__all__ = ["command", "run_paper"]

SCALES = ("smoke", "desk", "paper")


def run_paper(
    paper: str,
    *,
    scale: str = "desk",
    seeds: int | None = None,
    jobs: int | None = None,
    backend: str = "loky",
    store: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run one paper's study, resuming from the store, and return its result with `seconds` and `resumed`.

    Raises:
        InvalidInput: If the paper has no study yet.
    """
    from assay.cards import load_card, study_module

    card = load_card(paper)
    if card.status != "implemented":
        raise InvalidInput(f"{paper!r} is planned, it has no study yet; `assay list --status implemented` shows those")
    from assay.cli._tables import progress
    from assay.lab.results import find_study, result
    from assay.lab.run import run
    from assay.lab.store import Store, default_store

    study = study_module(card).study(scale)
    count = study.seeds if seeds is None else seeds
    path = store or default_store()
    start = time.perf_counter()
    with progress(f"{card.id} ({scale})", shown=not quiet) as update:
        done = run(
            study,
            task=card.id,
            scale=scale,
            seeds=count,
            store=path,
            jobs=jobs,
            backend=backend,
            progress=update,
        )
    with Store(path, create=False, check=False) as opened:
        found = result(
            opened, find_study(opened, card.id, scale), title=card.title, command=command_line(card.id, scale, count)
        )
    return found | {"resumed": done.resumed, "elapsed": time.perf_counter() - start}


def command_line(paper: str, scale: str, seeds: int) -> str:
    """Return the command that reruns a study."""
    return f"assay run {paper} --scale {scale} --seeds {seeds}"


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    from assay.lab.results import outcome_row, strict_json

    return strict_json(
        {
            "id": found["paper"],
            "verdict": found["verdict"]["status"],
            "expectations": [outcome_row(outcome) for outcome in found["verdict"]["outcomes"]],
            "trials": len(found["trials"]),
            "resumed": found["resumed"],
            "seconds": found["elapsed"],
        }
    )


def command(
    papers: Annotated[list[str], typer.Argument(help="Papers' ids, as `assay list` shows them.")],
    scale: Annotated[str, typer.Option(help="smoke (seconds), desk (minutes) or paper.")] = "desk",
    seeds: Annotated[int | None, typer.Option(help="Repetitions; a verdict needs at least 6.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Trials at a time; all cores by default.")] = None,
    backend: Annotated[str, typer.Option(help="loky, dask or ray.")] = "loky",
    store: Annotated[Path | None, typer.Option(help="SQLite file of finished trials.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Write evidence into the paper's folder.")] = False,
    report: Annotated[Path | None, typer.Option(help="Also build the HTML report in this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per study.")] = False,
) -> None:
    """Run studies. A killed run resumes: finished trials are in the store."""
    if scale not in SCALES:
        raise InvalidInput(f"--scale must be one of {', '.join(SCALES)}, not {scale!r}")
    if seeds is not None and seeds < 1:
        raise InvalidInput(f"--seeds must be at least 1, not {seeds}")
    from assay.cards import load_card

    cards = {paper: load_card(paper) for paper in papers}
    results = []
    for paper, card in cards.items():
        found = run_paper(paper, scale=scale, seeds=seeds, jobs=jobs, backend=backend, store=store, quiet=as_json)
        results.append(found)
        if record:
            from assay.lab.evidence import save_evidence

            save_evidence({k: v for k, v in found.items() if k not in ("resumed", "elapsed")}, card.folder)
        if as_json:
            typer.echo(json.dumps(_summary(found)))
    if not as_json:
        _print(results)
    if report is not None:
        from assay.cli.report import write_report

        index = write_report(report, results)
        typer.echo(f"Report: {index.resolve()}", err=as_json)


def _print(results: list[dict[str, Any]]) -> None:
    from assay.cli._tables import console, verdict_table

    for found in results:
        trials, resumed = len(found["trials"]), found["resumed"]
        again = f", {resumed} of them from the store" if resumed else ""
        console.print(verdict_table(found))
        console.print(f"[dim]{trials} trials{again}, {found['elapsed']:.1f} s[/]\n", highlight=False)
