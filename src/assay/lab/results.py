"""A result: everything that a run found out, as plain data for evidence, reports and programs."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from assay.lab.environment import environment
from assay.lab.judge import judge
from assay.lab.plan import PROTOCOL

if TYPE_CHECKING:
    from assay.lab.record import Record
    from assay.lab.run import RunResult
    from assay.lab.study import Study

__all__ = ["outcome_row", "result", "strict_json"]


def result(study: Study, run: RunResult, *, task: str, scale: str, title: str, command: str) -> dict[str, Any]:
    """Judge a run and return its result as plain data.

    Args:
        study: What was put to the test.
        run: Its trials.
        task: The paper's id, or a name for a run without a paper.
        scale: "smoke", "desk" or "paper".
        title: The heading of the report's page.
        command: The command that reruns it.

    Returns:
        The evidence fields (`protocol`, `paper`, `claim`, `verdict`, ...) and `trials`.
    """
    verdict = judge(study.expects, run.records).to_plain() if study.expects else None
    return {
        "kind": "study" if study.expects else "train",
        "protocol": PROTOCOL,
        "paper": task,
        "title": title,
        "scale": scale,
        "seeds": len(next(iter(run.records.values()))),
        "claim": study.claim,
        "limits": study.limits,
        "covers": study.covers,
        "arms": {name: _arm(study, name, run) for name in study.arms},
        "expectations": [expectation.to_plain() for expectation in study.expects],
        "verdict": verdict,
        "resources": _totals(run),
        "environment": environment(),
        "command": command,
        "recorded": datetime.now(UTC).date().isoformat(),
        "trials": _trials(run),
    }


def _arm(study: Study, name: str, run: RunResult) -> dict[str, Any]:
    tuned = dict(run.chosen.get(name, {}))
    arm = study.arms[name]
    chosen = arm.with_overrides(tuned).but(tune={}) if tuned else arm  # type: ignore[attr-defined]
    rows = [
        {"name": key, "value": value, "source": study.source(name, key)}
        for key, value in chosen.describe().items()
        if key != "function"
    ]
    grid = arm.describe().get("tune")
    if grid:
        rows.append({"name": "tune", "value": grid, "source": study.source(name, "tune")})
    return {"description": chosen.describe(), "tuned": tuned, "hyperparameters": rows}


def _trials(run: RunResult) -> list[dict[str, Any]]:
    return [
        {"key": trial.key, "arm": trial.arm, "seed": trial.seed, "stage": trial.stage, **record.to_plain()}
        for trial, record in run.trials
    ]


def _totals(run: RunResult) -> dict[str, float]:
    records: list[Record] = [record for _, record in run.trials]
    return {
        "trials": len(records),
        "seconds": sum(r.resources.get("seconds", 0.0) for r in records),
        "cpu_seconds": sum(r.resources.get("cpu_seconds", 0.0) for r in records),
        "peak_memory": max((r.resources.get("peak_memory", 0.0) for r in records), default=0.0),
    }


def outcome_row(outcome: dict[str, Any]) -> dict[str, Any]:
    """Return what a program wants of one expectation's outcome: text, status, effect, interval and n."""
    return {key: outcome[key] for key in ("text", "status", "effect", "interval", "n")}


def strict_json(value: Any) -> Any:
    """Replace what JSON does not know (NaN and infinities, also as strings) by None."""
    if isinstance(value, dict):
        return {key: strict_json(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if value in ("nan", "inf", "-inf") else value
