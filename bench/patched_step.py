"""A Llama's training step, patched against unpatched: time, peak memory and loss, in one run.

Each of the kernels alone and all together against the unpatched model, and torch.compile of the unpatched one. Times
are interleaved in one process (CPU times with one thread, wall times with more); peak memory comes from a fresh process
per candidate and leaves out weights and optimizer states. `--quick` takes 1024 tokens, one vocabulary and fewer rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch

from _measure import in_fresh_process, interleaved, peak_memory, write_results
from assay.kernels.patching import patch
from assay.papers.liger_kernel.study import llama

CONTEXT = 256
# What is patched; None for nothing.
CANDIDATES: dict[str, list[str] | None] = {
    "unpatched": None,
    "torch.compile(unpatched)": None,
    "norms": ["rms_norm"],
    "rotary embedding": ["rope"],
    "gated MLPs": ["swiglu"],
    "head and loss": ["linear_cross_entropy"],
    "all": ["rms_norm", "rope", "swiglu", "linear_cross_entropy"],
}


def stepper(candidate: str, classes: int, arguments: argparse.Namespace) -> Callable[[], float]:
    """Return a function that trains one step and returns the loss; all start from the same weights."""
    model = llama(classes, arguments.features, arguments.layers, CONTEXT, seed=0).to(getattr(torch, arguments.dtype))
    kernels = CANDIDATES[candidate]
    if kernels is not None:
        patch(model, kernels)
    run = torch.compile(model) if candidate.startswith("torch.compile") else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(classes, (arguments.tokens // CONTEXT, CONTEXT), generator=generator)

    def step() -> float:
        optimizer.zero_grad()
        loss = run(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def peak(candidate: str, classes: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the bytes that the second step adds in this process, and its loss."""
    step = stepper(candidate, classes, arguments)
    step()
    losses = []
    memory = peak_memory(lambda: losses.append(step()))
    return {"peak_memory": memory, "loss": losses[0]}


def compare(names: list[str], classes: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per candidate for one vocabulary."""
    times = interleaved({name: stepper(name, classes, arguments) for name in names}, arguments.rounds)
    clock = "cpu_seconds" if arguments.threads == 1 else "seconds"
    rows: list[dict[str, Any]] = []
    for name in names:
        options = {"--classes": classes, "--features": arguments.features, "--layers": arguments.layers}
        options |= {"--tokens": arguments.tokens, "--dtype": arguments.dtype, "--threads": arguments.threads}
        place = [part for pair in options.items() for part in pair]
        fresh = in_fresh_process(__file__, *place, "--peak", name)
        size = f"{arguments.tokens} x {arguments.features} x {classes}, {arguments.layers} layers"
        row = {"size": size, "dtype": arguments.dtype, "candidate": name, "memory_MiB": fresh["peak_memory"] / 2**20}
        rows.append({**row, **times[name], "loss of step 2": fresh["loss"]})
        print(f"# {size} {name}: {times[name][clock]:.2f} s, {row['memory_MiB']:.0f} MiB", flush=True)
    for row in rows:
        row["time / unpatched"] = row[clock] / rows[0][clock]
        row["memory / unpatched"] = row["memory_MiB"] / rows[0]["memory_MiB"]
    return rows


def main() -> None:
    """Measure and write bench/results/patched_step.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1024 tokens, 128256 words, 3 rounds, no torch.compile")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--classes", type=int, nargs="+", default=[32000, 128256])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--peak", choices=list(CANDIDATES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(json.dumps(peak(arguments.peak, arguments.classes[0], arguments)))
        return
    if arguments.quick:
        arguments.tokens, arguments.classes, arguments.rounds = 1024, [128256], 3
        arguments.only = [name for name in arguments.only if not name.startswith("torch.compile")]
    names = ["unpatched", *(name for name in arguments.only if name != "unpatched")]
    rows = [row for classes in arguments.classes for row in compare(names, classes, arguments)]
    shown = [row for row in rows if row["candidate"] == "all"]
    found = {f"{row['size']}: {key}": row[key] for row in shown for key in ("memory / unpatched", "time / unpatched")}
    target = "memory at most 0.4 at 128256 words"
    settings = {"threads": arguments.threads, "rounds": arguments.rounds, "target": target}
    write_results("patched_step", rows=rows, summary=found, settings=settings)


if __name__ == "__main__":
    main()
