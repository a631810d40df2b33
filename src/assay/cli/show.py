"""`assay show`: a paper's card, its verdict and, on request, the plan of its study."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(
    paper: Annotated[str, typer.Argument(help="The paper's id.")],
    plan: Annotated[bool, typer.Option("--plan", help="Also the trials that a run would do, with their keys.")] = False,
    scale: Annotated[str, typer.Option(help="The plan's scale.")] = "desk",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show one paper."""
    from assay.cards import load_card, load_verdict

    card = load_card(paper)
    verdict = load_verdict(card)
    shown: dict[str, Any] = {k: v for k, v in asdict(card).items() if k != "folder"} | {"verdict": verdict or None}
    if plan:
        shown["plan"] = _plan(paper, scale)
    if as_json:
        typer.echo(json.dumps(shown, indent=1))
        return
    _print(shown)


def _plan(paper: str, scale: str) -> list[dict[str, Any]]:
    from assay.cards import load_card, study_module
    from assay.cli.run import SCALES
    from assay.errors import InvalidInput
    from assay.lab.plan import plan

    if scale not in SCALES:
        raise InvalidInput(f"--scale must be one of {', '.join(SCALES)}, not {scale!r}")
    card = load_card(paper)
    if card.status != "implemented":
        raise InvalidInput(f"{paper!r} is planned, it has no study yet")
    study = study_module(card).study(scale)
    trials = plan(study, task=card.id, scale=scale, seeds=study.seeds)
    return [{"key": t.key, "arm": t.arm, "seed": t.seed, "stage": t.stage} for t in trials]


def _print(shown: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    console.print(f"[bold]{escape(shown['title'])}[/]")
    console.print(
        f"{escape(', '.join(shown['authors']))} ({shown['year']}). {escape(shown['venue'])}. {shown['reference']}"
    )
    console.print(escape(shown["summary"]))
    for name in ("seam", "status"):
        console.print(f"{name}: {shown[name]}")
    for name in ("parts", "probes", "equations"):
        for value in shown[name]:
            console.print(f"{name}: {escape(value)}")
    verdict = shown["verdict"]
    if verdict:
        console.print(f"verdict: [bold]{verdict['status']}[/] at {verdict['scale']} scale, {verdict['seeds']} seeds")
        for outcome in verdict.get("outcomes", []):
            console.print(f"  {escape(outcome['text'])}: {outcome['status']}. {escape(outcome['reason'])}")
    for trial in shown.get("plan", []):
        console.print(f"{trial['key'][:16]}  {trial['stage']:5}  seed {trial['seed']:5}  {escape(trial['arm'])}")
