"""A result: everything that a run found out, as plain data for evidence, reports and programs.

It is a function of the store alone, so that a page or a verdict never depends on what a process happened to hold.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from assay.errors import StoreError
from assay.lab.expectations import Expectation
from assay.lab.judge import judge
from assay.lab.pictures import data_uri, png

if TYPE_CHECKING:
    from assay.lab.record import Record
    from assay.lab.store import Store, StoredStudy, StoredTrial

__all__ = ["find_study", "outcome_row", "result", "strict_json"]


def find_study(store: Store, task: str, scale: str) -> StoredStudy:
    """Return a study that was run into the store.

    Raises:
        StoreError: If it was not.
    """
    for study in store.studies():
        if (study.id, study.scale) == (task, scale):
            return study
    raise StoreError(f"store {store.path} has no study {task!r} at {scale} scale; run it first")


def result(store: Store, study: StoredStudy, *, title: str, command: str) -> dict[str, Any]:
    """Judge a stored study, keep the verdict in the store, and return the study's result.

    Args:
        store: Where its trials are.
        study: Which study.
        title: The heading of the report's page.
        command: The command that reruns it.

    Returns:
        Plain data: the evidence fields (`protocol`, `paper`, `claim`, `verdict`, ...) and `trials`. Where trials gave
        pictures, "pictures" has those of each arm's first seed, by arm and name, as data URIs.

    Raises:
        StoreError: If a trial of the study is missing.
    """
    plan = study.plan
    stored = _trials(store, study)
    expectations = [Expectation.from_plain(plain) for plain in plan["expectations"]]
    verdict = judge(expectations, _records(stored, plan["trials"])).to_plain() if expectations else None
    if verdict is not None:
        store.save_verdict(study.id, study.scale, verdict)
    finals = {
        planned["arm"]: dict(entry.trial.description)
        for entry, planned in zip(stored, plan["trials"], strict=True)
        if planned["stage"] == "final"
    }
    return {
        "kind": "study" if verdict else "train",
        "protocol": plan["protocol"],
        "paper": study.id,
        "title": title,
        "scale": study.scale,
        "seeds": plan["seeds"],
        "claim": plan["claim"],
        "limits": plan["limits"],
        "covers": plan["covers"],
        "arms": {name: _arm(name, arm, plan["chosen"], finals) for name, arm in plan["arms"].items()},
        "expectations": plan["expectations"],
        "verdict": verdict,
        "resources": _totals([entry.record for entry in stored]),
        "environment": dict(stored[-1].environment),
        "command": command,
        "recorded": stored[-1].created[:10],
        **({"pictures": pictures} if (pictures := _pictures(stored, plan["trials"])) else {}),
        "trials": [_trial(entry, planned) for entry, planned in zip(stored, plan["trials"], strict=True)],
    }


def _trials(store: Store, study: StoredStudy) -> list[StoredTrial]:
    """Return the study's trials in planned order, under the arms' names that the plan has."""
    keys = [trial["key"] for trial in study.plan["trials"]]
    found = store.trials(keys)
    missing = [key for key in keys if key not in found]
    if missing:
        raise StoreError(
            f"store {store.path} lacks {len(missing)} trials of {study.id!r} ({study.scale}); run it again"
        )
    return [found[key] for key in keys]


def _records(stored: list[StoredTrial], planned: list[dict[str, Any]]) -> dict[str, dict[int, Record]]:
    records: dict[str, dict[int, Record]] = defaultdict(dict)
    for entry, trial in zip(stored, planned, strict=True):
        if trial["stage"] == "final":
            records[trial["arm"]][trial["seed"]] = entry.record
    return dict(records)


def _arm(name: str, arm: dict[str, Any], chosen: dict[str, Any], finals: dict[str, Any]) -> dict[str, Any]:
    """Return an arm as it ran: with tuned values in place of what the study declared, and the grid they came from."""
    description = finals[name]
    rows = [
        {**row, "value": description.get(row["name"], row["value"])}
        for row in arm["hyperparameters"]
        if row["name"] in description or row["name"] == "tune"
    ]
    return {"description": description, "tuned": chosen.get(name, {}), "hyperparameters": rows}


def _trial(entry: StoredTrial, planned: dict[str, Any]) -> dict[str, Any]:
    return {name: planned[name] for name in ("key", "arm", "seed", "stage")} | entry.record.to_plain()


def _pictures(stored: list[StoredTrial], planned: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    found: dict[str, tuple[int, Record]] = {}
    for entry, trial in zip(stored, planned, strict=True):
        arm, seed = trial["arm"], trial["seed"]
        if trial["stage"] == "final" and (arm not in found or seed < found[arm][0]):
            found[arm] = seed, entry.record
    return {
        arm: {name: data_uri(png(picture)) for name, picture in record.pictures.items()}
        for arm, (_, record) in found.items()
        if record.pictures
    }


def _totals(records: list[Record]) -> dict[str, float]:
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
