"""What learning rules cost against backpropagation on the same network: time per epoch and peak memory, by depth.

Networks of width 256 at depth 4, 16 and 64 on mini-batches of 256 samples with 784 entries and 10 classes, in float32;
`assay.testing._rule_settings.DEEP` says which rule is measured on which network, and which one backpropagation trains
beside it. An update is one `rule.step` with plain SGD. A rule that trains in phases, each with its share of the epochs,
is measured in its first, middle and last phase, and the mean is taken. Times are interleaved, CPU times with one
thread. Memory is what tensors take at the peak of an update beyond parameters, gradients and the mini-batch, exact to
the byte; a rule that keeps no activations across blocks must be flat in depth. "kept for backward" is autograd's part.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from _measure import interleaved, write_results
from assay.lab.cost import counted
from assay.names import resolve
from assay.rules.rule import Rule
from assay.testing._rule_settings import DEEP, Deep
from assay.testing._tensor_memory import peak_tensor_bytes

INPUTS, CLASSES, BATCH, WIDTH = 784, 10, 256, 256
EPOCH = 60_000
BACKPROP = "backprop"


def build(deep: Deep, depth: int) -> Rule:
    """Return a rule on a fresh network; the same weights every time."""
    torch.manual_seed(0)
    model = resolve("models", deep.network.format(depth=depth, width=WIDTH))((INPUTS,), CLASSES)
    make = resolve("rules", deep.rule.format(depth=depth))
    takes = inspect.signature(make).parameters
    return make(model, **({"num_classes": CLASSES} if "num_classes" in takes else {}))


def mini_batch() -> tuple[Tensor, Tensor]:
    """Return standard normal inputs and labels."""
    return torch.randn(BATCH, INPUTS, generator=torch.Generator().manual_seed(1)), torch.arange(BATCH) % CLASSES


def phases(rule: Rule) -> list[str]:
    """Return the first, the middle and the last phase."""
    names = rule.phase_names
    return [names[i] for i in sorted({0, len(names) // 2, len(names) - 1})]


@contextmanager
def updates(rule: Rule, phase: str) -> Iterator[Callable[[], object]]:
    """Enter a phase and give one update of it."""
    x, y = mini_batch()
    rule.begin(phase)
    rule.train()
    optimizer = torch.optim.SGD(rule.trained_parameters(), lr=1e-4, foreach=False)
    yield lambda: rule.step(x, y, optimizer)
    rule.zero_grad(set_to_none=True)


def timed_update(deep: Deep, depth: int) -> Callable[[], object]:
    """Return a call that makes one update per phase of `phases`."""
    rule = build(deep, depth)
    x, y = mini_batch()
    chosen = phases(rule)

    def call() -> None:
        for phase in chosen:
            if rule.phase != phase:
                rule.begin(phase)
            rule.step(x, y, torch.optim.SGD(rule.trained_parameters(), lr=1e-4, foreach=False))

    call.phases = len(chosen)  # type: ignore[attr-defined]
    return call


def memory(deep: Deep, depth: int) -> tuple[float, float]:
    """Return MiB of tensors at the peak of an update and MiB kept for backward passes, the most over the phases."""
    rule = build(deep, depth)
    peaks, kept = [], []
    for phase in phases(rule):
        with updates(rule, phase) as update:
            update()
            peaks.append(peak_tensor_bytes(update, lambda: [p.grad for p in rule.parameters() if p.grad is not None]))
            cost: dict[str, float] = {}
            with counted(cost, rule):
                update()
            kept.append(cost["saved_bytes"])
    return max(peaks) / 2**20, max(kept) / 2**20


def compare(depth: int, rounds: int, names: list[str]) -> list[dict[str, object]]:
    """Return a row per rule at one depth, each beside backpropagation on the same network."""
    baselines = {DEEP[name].baseline or DEEP[name].network for name in names}
    measured = {f"{BACKPROP}: {network}": Deep(BACKPROP, network) for network in sorted(baselines)}
    measured |= {name: DEEP[name] for name in names}
    calls = {name: timed_update(deep, depth) for name, deep in measured.items()}
    times = interleaved(calls, rounds, patience=10.0)
    seconds = {name: times[name]["cpu_seconds"] / calls[name].phases for name in measured}  # type: ignore[attr-defined]
    rounds_made = {name: int(times[name]["rounds"]) for name in measured}
    del calls
    gc.collect()
    bytes_of = {name: memory(deep, depth) for name, deep in measured.items()}
    rows: list[dict[str, object]] = []
    for name, deep in measured.items():
        base = f"{BACKPROP}: {deep.baseline or deep.network}"
        rows.append(
            {
                "rule": BACKPROP if deep.rule == BACKPROP else name,
                "network": deep.network.format(depth=depth, width=WIDTH),
                "depth": depth,
                "seconds per epoch": seconds[name] * EPOCH / BATCH,
                "time / backprop": seconds[name] / seconds[base],
                "MiB at peak": bytes_of[name][0],
                "memory / backprop": bytes_of[name][0] / bytes_of[base][0],
                "MiB kept for backward": bytes_of[name][1],
                "rounds": rounds_made[name],
            }
        )
    return rows


def summary(rows: list[dict[str, object]], depths: list[int]) -> dict[str, object]:
    """Return per rule the growth of memory with depth, whether it is flat, and the median time ratio."""
    found: dict[str, object] = {}
    for name in DEEP:
        mine = [row for row in rows if row["rule"] == name]
        if not mine:
            continue
        peaks = [float(row["MiB at peak"]) for row in mine]  # type: ignore[arg-type]
        growth = peaks[-1] / peaks[0]
        local = build(DEEP[name], depths[0]).local
        found[f"{name}: memory at depth {depths[-1]} / {depths[0]}"] = growth
        if local and growth > 1.05:
            raise SystemExit(f"{name} is local, but its memory grows by {growth:.3g} with depth")
        ratios = [float(row["time / backprop"]) for row in mine]  # type: ignore[arg-type]
        found[f"{name}: time / backprop"] = statistics.median(ratios)
    return found


def main() -> None:
    """Measure and write bench/results/learning_rules.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two depths and one round, nothing written")
    parser.add_argument("--rule", action="append", choices=list(DEEP), help="only these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    depths, rounds = ([2, 4], 1) if arguments.quick else ([4, 16, 64], 5)
    rows = [row for depth in depths for row in compare(depth, rounds, arguments.rule or list(DEEP))]
    found = summary(rows, depths)
    if arguments.quick or arguments.rule:
        print(*rows, found, sep="\n")
        return
    settings = {"width": WIDTH, "batch": BATCH, "inputs": INPUTS, "epoch": EPOCH, "rounds": rounds, "threads": 1}
    write_results("learning_rules", rows=rows, summary=found, settings=settings)


if __name__ == "__main__":
    main()
