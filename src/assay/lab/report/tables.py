"""The report's tables as plain rows: final values, hyper-parameters with their sources, tuning, resources."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from assay.lab.report import text

__all__: list[str] = []

Trials = Sequence[Mapping[str, Any]]
LEADING = (
    "test_accuracy", "validation_accuracy", "train_accuracy", "test_loss", "validation_loss", "train_loss",
)  # fmt: skip
RESOURCE_NAMES = {"seconds": "wall time", "cpu_seconds": "CPU time", "peak_memory": "peak memory"}


@dataclass(frozen=True)
class Cell:
    """One cell: what it says, a second line under it, and whether it stands out from the first arm's."""

    value: str
    note: str = ""
    differs: bool = False


@dataclass(frozen=True)
class Row:
    """One quantity or setting: a cell per arm, and the source they share ("" if they share none)."""

    name: str
    cells: list[Cell]
    source: str = ""


def final_trials(result: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return the final trials by arm and seed, arms in the study's order and seeds in theirs."""
    arms: dict[str, dict[str, Mapping[str, Any]]] = {str(name): {} for name in result.get("arms") or {}}
    for trial in result.get("trials") or ():
        if trial.get("stage", "final") == "final":
            arms.setdefault(str(trial["arm"]), {})[str(trial["seed"])] = trial
    return {arm: dict(sorted(seeds.items(), key=lambda item: _seed_order(item[0]))) for arm, seeds in arms.items()}


def in_order(names: Iterable[str], first: Sequence[str] = ()) -> list[str]:
    """Sort quantities: accuracies and losses, then those that the claim is about, then the rest by name."""
    priority = [*LEADING, *first]
    return sorted(set(names), key=lambda n: (priority.index(n) if n in priority else len(priority), n))


def metric_rows(finals: Mapping[str, Mapping[str, Mapping[str, Any]]], first: Sequence[str]) -> list[Row]:
    """Return a row per final metric: each arm's mean over seeds with its 95 % t interval."""
    trials = [trial for seeds in finals.values() for trial in seeds.values()]
    names = in_order((n for t in trials for n in t.get("metrics") or {}), first)
    return [Row(name, [_mean_cell(_values(seeds, "metrics", name)) for seeds in finals.values()]) for name in names]


def outcome_rows(finals: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Row]:
    """Return how many trials of each arm came to their end, diverged or ran out of time."""
    counts = [Counter(str(t.get("status", "done")) for t in seeds.values()) for seeds in finals.values()]
    labels = {"done": "finished", "diverged": "diverged", "timeout": "timed out"}
    return [Row(label, [Cell(str(c[status])) for c in counts]) for status, label in labels.items()]


def resource_rows(finals: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Row]:
    """Return a row per resource: each arm's mean over seeds."""
    trials = [trial for seeds in finals.values() for trial in seeds.values()]
    known = {name for trial in trials for name in trial.get("resources") or {}}
    order = [*RESOURCE_NAMES, "parameters"]
    names = sorted(known, key=lambda n: (order.index(n) if n in order else len(order), n))

    def cell(seeds: Mapping[str, Mapping[str, Any]], name: str) -> Cell:
        values = _values(seeds, "resources", name)
        return Cell(text.resource(name, math.fsum(values) / len(values)) if values else text.MISSING)

    return [
        Row(RESOURCE_NAMES.get(name, text.label(name)), [cell(seeds, name) for seeds in finals.values()])
        for name in names
    ]


def hyperparameter_rows(arms: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
    """Split the arms' hyper-parameters.

    Returns:
        Rows that all arms share (one cell), and rows in which they differ (a cell per arm).
    """
    by_arm = [{str(row["name"]): row for row in arm.get("hyperparameters") or ()} for arm in arms.values()]
    names = list(dict.fromkeys(name for rows in by_arm for name in rows))
    shared, different = [], []
    for name in names:
        rows = [rows.get(name) for rows in by_arm]
        values = [text.setting(r.get("value")) if r else text.MISSING for r in rows]
        sources = [str(r.get("source") or "") if r else None for r in rows]
        stated = {s for s in sources if s is not None}
        if len(set(values)) == 1 and len(stated) == 1:
            shared.append(Row(name, [Cell(values[0])], stated.pop()))
            continue
        common = stated.pop() if len(stated) == 1 else ""
        notes = ["" if common or s is None else s or "source not stated" for s in sources]
        cells = [Cell(v, n, v != values[0]) for v, n in zip(values, notes, strict=True)]
        different.append(Row(name, cells, common))
    return shared, different


def tuning_rows(arms: Mapping[str, Any], trials: Trials) -> list[Row]:
    """Return the tuned values that were chosen, after a row with the number of tuning trials; [] without tuning."""
    counts = _tuning_counts(trials)
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm.get("tuned") or {}))
    rows = [Row("tuning trials", [Cell(str(counts[arm])) for arm in arms])] if counts else []
    return rows + [Row(name, [_tuned_cell(arm, name) for arm in arms.values()]) for name in names]


def tuning_note(arms: Mapping[str, Any], trials: Trials) -> str:
    """Say how many tuning trials the arms had, as far as the trials are stored."""
    counts = _tuning_counts(trials)
    judged = "Judged on validation data, never on test data."
    if len(set(counts.values())) != 1:
        return judged
    each = "Every arm" if len(counts) == len(arms) else "Every tuned arm"
    return f"{each} had {text.plural(next(iter(counts.values())), 'tuning trial')} over its own grid. {judged}"


def mean_interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Return the mean and the ends of its 95 % Student t interval; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(stdtrit(n - 1, 0.975)) * spread
    return mean, mean - half, mean + half


def resource_totals(resources: Mapping[str, Any]) -> dict[str, str]:
    """Return the run's totals by name, each in its unit."""
    write: dict[str, Callable[[Any], str]] = {"trials": text.count}
    return {
        RESOURCE_NAMES.get(name, text.label(name)): write.get(name, lambda v, n=name: text.resource(n, v))(value)
        for name, value in resources.items()
    }


def _mean_cell(values: Sequence[float]) -> Cell:
    if not values:
        return Cell(text.MISSING)
    estimate = mean_interval(values)
    if estimate is None:
        return Cell(text.number(values[0]), "one seed")
    mean, low, high = estimate
    if low == high:
        return Cell(text.number(mean), "in every seed")
    return Cell(text.estimate(mean, low, high), text.interval(low, high))


def _values(seeds: Mapping[str, Mapping[str, Any]], kind: str, name: str) -> list[float]:
    found = [text.finite((trial.get(kind) or {}).get(name)) for trial in seeds.values()]
    return [value for value in found if value is not None]


def _tuning_counts(trials: Trials) -> Counter[str]:
    return Counter(str(trial["arm"]) for trial in trials if trial.get("stage") == "tune")


def _tuned_cell(arm: Mapping[str, Any], name: str) -> Cell:
    tuned = arm.get("tuned") or {}
    return Cell(text.setting(tuned[name]) if name in tuned else text.MISSING)


def _seed_order(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.isdecimal() else (1 << 62, seed)
