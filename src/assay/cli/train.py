"""`assay train`: combine any data, model, loss, optimizer, rule and probes, with seeds and intervals."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.errors import InvalidInput

__all__ = ["command", "training_study"]

VARIED = ("data", "model", "rule", "loss", "optimizer")


def training_study(axes: dict[str, list[str]], **fixed: Any) -> Any:
    """Return a study without expectations whose arms are all combinations of the given names.

    Args:
        axes: Names by field of `Experiment`; several names in one field make several arms.
        **fixed: The other fields of `Experiment`, the same for all arms.

    Returns:
        A `Study`; its arms are named by what differs between them.
    """
    from assay.lab.experiment import Experiment
    from assay.lab.study import Study

    varying: list[str] = [name for name, values in axes.items() if len(values) > 1]
    arms = {}
    for combination in itertools.product(*(values or ("",) for values in axes.values())):
        chosen: dict[str, Any] = {name: value for name, value in zip(axes, combination, strict=True) if value}
        label = " + ".join(str(chosen[name]) for name in varying) or chosen.get("rule", "backprop")
        arms[label] = Experiment(**chosen, **fixed)
    sources = dict.fromkeys((*VARIED, *fixed), "given on the command line")
    return Study(claim="A run without a claim: what was asked for on the command line.", arms=arms, sources=sources)


def _axis(values: list[str] | None, default: str | None) -> list[str]:
    return list(values) if values else [default] if default else []


def command(
    data: Annotated[list[str] | None, typer.Option(help="Data set, such as 'mnist(train=4000)'. [digits]")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Model, or package.module:MyModel. [mlp]")] = None,
    rule: Annotated[list[str] | None, typer.Option(help="Learning rule. [backprop]")] = None,
    loss: Annotated[list[str] | None, typer.Option(help="Loss; the rule's own by default.")] = None,
    optimizer: Annotated[list[str] | None, typer.Option(help="Optimizer. [adam(lr=1e-3)]")] = None,
    transform: Annotated[list[str] | None, typer.Option(help="Gradient transforms, in order.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Learning-rate schedule, stepped per epoch.")] = None,
    probe: Annotated[list[str] | None, typer.Option(help="Probes to measure on the training data.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Budget in epochs. [10]")] = None,
    samples: Annotated[int | None, typer.Option(help="Budget in training samples.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Budget in seconds of training.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per mini-batch; 0 is the whole training set.")] = 128,
    probe_every: Annotated[float | None, typer.Option(help="Epochs between measurements; at the end only.")] = None,
    max_overhead: Annotated[
        float | None, typer.Option(help="Probing over training time: intervals are chosen by timing before the run.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Repetitions.")] = 3,
    jobs: Annotated[int | None, typer.Option(help="Trials at a time; all cores by default.")] = None,
    backend: Annotated[str, typer.Option(help="loky, dask or ray.")] = "loky",
    store: Annotated[Path | None, typer.Option(help="SQLite file of finished trials.")] = None,
    report: Annotated[Path, typer.Option(help="Folder for the report's pages.")] = Path("report"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train every combination of the given names; repeat an option to compare several."""
    if seeds < 1:
        raise InvalidInput(f"--seeds must be at least 1, not {seeds}")
    if batch_size < 0:
        raise InvalidInput(f"--batch-size must be at least 0, not {batch_size}")
    from assay.lab.results import find_study, result, strict_json
    from assay.lab.run import run
    from assay.lab.store import Store, default_store

    defaults = {
        "data": "digits",
        "model": "mlp",
        "rule": "backprop",
        "loss": None,
        "optimizer": "adam(lr=1e-3)",
    }
    given = {"data": data, "model": model, "rule": rule, "loss": loss, "optimizer": optimizer}
    axes = {name: _axis(given[name], defaults[name]) for name in VARIED}
    _check_names(axes, transform or [], probe or [], schedule)
    fixed: dict[str, Any] = {
        "transforms": tuple(transform or ()),
        "schedule": schedule,
        "probes": tuple(probe or ()),
        "epochs": 10 if epochs is None and samples is None and seconds is None else epochs,
        "samples": samples,
        "seconds": seconds,
        "batch_size": batch_size or None,
    }
    study = training_study(axes, **fixed, probe_every=probe_every)
    _check_arms(study)
    if max_overhead is not None:
        intervals = _within(study, max_overhead, probe_every)
        study = training_study(axes, **fixed, probe_every=intervals)
        listed = ", ".join(f"{name} every {epochs:g}" for name, epochs in intervals.items())
        typer.echo(f"Within {max_overhead:g} of training time, in epochs: {listed}.", err=as_json)
    from assay.cli._tables import progress

    path = store or default_store()
    with progress("training", shown=not as_json) as update:
        done = run(
            study, task="train", scale="desk", seeds=seeds, store=path, jobs=jobs, backend=backend, progress=update
        )
    with Store(path, create=False, check=False) as opened:
        line = _command_line(axes, transform, probe, seeds)
        found = result(opened, find_study(opened, "train", "desk"), title="assay train", command=line)
    rows = _rows(found)
    if as_json:
        typer.echo(json.dumps(strict_json({"arms": rows, "trials": len(found["trials"]), "resumed": done.resumed})))
        return
    _print(rows)
    from assay.lab.report import build_report

    index = build_report([], [strict_json(found)], report)
    typer.echo(f"Report: {index.resolve()}")


def _within(study: Any, max_overhead: float, probe_every: float | None) -> dict[str, float]:
    """Return the epochs between each probe's measurements, as plain data that a rerun can be given."""
    from assay.lab.probe_schedule import timed_intervals

    arms = list(study.arms.values())
    if not arms[0].probes:
        raise InvalidInput("--max-overhead needs at least one --probe")
    return timed_intervals(arms, max_overhead, every=probe_every or 1.0)


def _check_names(axes: dict[str, list[str]], transforms: list[str], probes: list[str], schedule: str | None) -> None:
    """Resolve every name before anything runs, so that a typing error costs nothing."""
    from assay.names import resolve

    seams = {"data": "data", "model": "models", "rule": "rules", "loss": "losses", "optimizer": "optim"}
    for axis, values in axes.items():
        for value in values:
            resolve(seams[axis], value)
    for seam, values in {
        "optim": transforms,
        "probes": probes,
        "schedules": [schedule] if schedule else [],
    }.items():
        for value in values:
            resolve(seam, value)


def _check_arms(study: Any) -> None:
    """Build every arm before any is trained: what a rule can't train is said at once, in one line."""
    from assay.lab.training import check

    for name, arm in study.arms.items():
        try:
            check(arm)
        except InvalidInput as error:
            raise InvalidInput(str(error) if len(study.arms) == 1 else f"{name}: {error}") from error


def _command_line(axes: dict[str, list[str]], transform: list[str] | None, probe: list[str] | None, seeds: int) -> str:
    import shlex

    options = [(name, value) for name, values in axes.items() for value in values]
    options += [("transform", t) for t in transform or []] + [("probe", p) for p in probe or []]
    words = [word for name, value in options for word in (f"--{name}", value)]
    return shlex.join(["assay", "train", *words, "--seeds", str(seeds)])


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every arm's final metrics with their mean and 95 % t interval over the seeds that have a value."""
    rows = []
    for arm in found["arms"]:
        trials = [trial for trial in found["trials"] if trial["arm"] == arm]
        names = dict.fromkeys(name for trial in trials for name in trial["metrics"])
        metrics = {name: _cell([float(t["metrics"].get(name, "nan")) for t in trials]) for name in names}
        rows.append({"arm": arm, "status": [trial["status"] for trial in trials], "metrics": metrics})
    return rows


def _cell(values: list[float]) -> dict[str, Any]:
    from assay.lab.statistics import t_interval

    finite = [value for value in values if math.isfinite(value)]
    interval = t_interval(finite) if len(finite) > 1 else None
    return {"mean": sum(finite) / len(finite) if finite else None, "interval": interval, "n": len(finite)}


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from assay.cli._tables import console, number

    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("metric")
    for row in rows:
        diverged = sum(status != "done" for status in row["status"])
        table.add_column(escape(row["arm"]) + (f" ({diverged} diverged)" if diverged else ""), justify="right")
    for name in names:
        cells = []
        for row in rows:
            cell = row["metrics"].get(name)
            low, high = (cell or {}).get("interval") or (None, None)
            spread = f" [{number(low)}, {number(high)}]" if low is not None else ""
            cells.append(number(cell["mean"]) + spread if cell else "-")
        table.add_row(name, *cells)
    console.print(table)
    console.print(f"mean [95 % t interval] over {len(rows[0]['status'])} seeds", highlight=False, markup=False)
