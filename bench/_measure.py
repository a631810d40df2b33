"""What the benchmarks share: interleaved timing, peak memory of fresh processes, results as JSON and as a table.

Candidates are called once per round in rotating order, so that a slow moment of the machine hits all alike. CPU time
is that of all threads: with one thread it is what the wall clock would show on an idle machine. Peak memory is the
high-water mark of a fresh process's resident memory above its value before the call, so it counts the outputs too.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from assay.lab.environment import environment
from assay.lab.resources import measured

RESULTS = Path(__file__).parent / "results"


def interleaved(
    candidates: Mapping[str, Callable[[], object]], rounds: int, *, patience: float = 3.0
) -> dict[str, dict[str, float]]:
    """Time each candidate once per round, after one call to warm up.

    Args:
        candidates: By name; the first is the baseline.
        rounds: How often each is called.
        patience: Candidates slower than this many times the baseline when warm are called in the first round only.

    Returns:
        Per candidate "cpu_seconds", "seconds" (medians), "cpu_seconds_min", "cpu_seconds_max" and "rounds".
    """
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    names, baseline = list(candidates), next(iter(candidates))
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(_timed(candidates[name]))
        if index == 0:
            limit = patience * samples[baseline][0][0]
            names = [name for name in names if samples[name][0][0] <= limit]
    return {name: _summary(pairs) for name, pairs in samples.items()}


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def _summary(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    cpu, wall = zip(*pairs, strict=True)
    return {
        "cpu_seconds": statistics.median(cpu),
        "seconds": statistics.median(wall),
        "cpu_seconds_min": min(cpu),
        "cpu_seconds_max": max(cpu),
        "rounds": len(pairs),
    }


def peak_memory(call: Callable[[], object]) -> float:
    """Return the bytes that a call adds to the resident memory at its highest, its result included (Linux)."""
    with measured() as usage:
        result = call()
    del result
    return usage["peak_memory"]


def in_fresh_process(script: str, *arguments: object) -> dict[str, Any]:
    """Run a script with arguments in a new process and return the JSON object that is its last line of output.

    Raises:
        RuntimeError: With the end of its error output, if it fails.
    """
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-500:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_results(
    name: str, *, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Write bench/results/NAME.json and NAME.md (the rows as a table), and print the table.

    Args:
        name: The benchmark.
        rows: One mapping of column to value per row.
        summary: What the benchmark says, such as a ratio.
        settings: What was asked for: sizes, rounds, threads.
    """
    RESULTS.mkdir(exist_ok=True)
    record = {
        "name": name,
        "recorded": date.today().isoformat(),
        "environment": environment(),
        "settings": dict(settings),
        "summary": dict(summary),
        "rows": [dict(row) for row in rows],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    lines = [table(rows), "", *(f"- {key}: {_text(value)}" for key, value in summary.items())]
    (RESULTS / f"{name}.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print("\n".join(lines))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; a column that a row lacks is left empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([_text(row.get(c, "")) for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
