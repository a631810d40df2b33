"""Whether `max_overhead` keeps its word on a real run: wall time of training with and without a watched budget.

A multi-layer perceptron trains on Gaussian clusters. Loops of the same steps take turns: unwatched, and calling
`measure` after every step with a budget. The share that the watch reports, its slow first measurement included, stands
beside what the loop took longer than the unwatched one; medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import nn

from _measure import write_results
from assay.watch import Watch

PROBES = ["softmax-collapse", "neural-collapse", "logit-scaling-alignment"]
BUDGETS = {"unwatched": None, "max_overhead=0.1": 0.1, "max_overhead=0.3": 0.3}


def loop(name: str, steps: int, width: int) -> dict[str, Any]:
    """Train; return the seconds and what the watch says of itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    y = torch.arange(2048) % 10
    x = torch.randn(2048, 256) + 2 * nn.functional.one_hot(y, 256)
    watch = None if name == "unwatched" else Watch(model, PROBES, (x, y), max_overhead=BUDGETS[name])
    start = time.perf_counter()
    for step in range(steps):
        rows = slice(128 * step % 2048, 128 * step % 2048 + 128)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        if watch is not None:
            watch.measure(step)
    said: dict[str, Any] = {"seconds": time.perf_counter() - start}
    if watch is not None:
        said |= {"overhead": watch.overhead}
        said |= {f"measurements, {row['probe']}": row["measurements"] for row in watch.costs()}
    return said


def main() -> None:
    """Measure and write bench/results/watch_overhead.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps, width, rounds = (60, 64, 1) if arguments.quick else (1500, 512, 5)
    loop("unwatched", 3, width)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in BUDGETS}
    for _ in range(rounds):
        for name in BUDGETS:
            runs[name].append(loop(name, steps, width))
    alone = statistics.median(run["seconds"] for run in runs["unwatched"])
    rows = []
    for name, found in runs.items():
        medians = {key: statistics.median(run[key] for run in found) for key in found[0]}
        rows.append({"loop": name, **medians, "longer_than_unwatched": medians["seconds"] / alone - 1})
    summary = {f"{row['loop']}: longer than unwatched by": row["longer_than_unwatched"] for row in rows[1:]}
    settings = {"steps": steps, "width": width, "rounds": rounds, "samples": 2048, "threads": 1}
    write_results("watch_overhead", rows=rows, summary=summary, settings=settings)


if __name__ == "__main__":
    main()
