"""Linear head and cross-entropy, forward and backward: time, peak memory and errors, in one run.

Every candidate against eager `F.cross_entropy(F.linear(...))`: PyTorch's `F.linear_cross_entropy` with its options,
torch.compile of eager, cut-cross-entropy where it is installed, and Assay's. Times are interleaved in one process and
are CPU times with one thread, wall times with more; peak memory comes from a fresh process per candidate. Errors are
relative to float64. A candidate that takes minutes a call is left out at the larger vocabulary.
`--quick` takes a smaller head and fewer rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from _measure import in_fresh_process, interleaved, peak_memory, write_results
from assay.kernels.fused_linear_cross_entropy.functional import linear_cross_entropy
from assay.papers.liger_kernel.study import Loss, eager, errors, head, step

TARGETS = {"memory of eager, at most": 0.2, "time of eager, at most": 1.05, "time of torch.compile, at most": 1.1}


def torch_operator(**options: Any) -> Loss:
    """PyTorch's chunked operator with options."""

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        chosen = torch.nn.LinearCrossEntropyOptions(**options)
        return F.linear_cross_entropy(hidden, weight, labels, options=chosen)

    return loss


def cut_cross_entropy() -> Loss:
    """The cut-cross-entropy package, by its implementation that runs without a GPU."""
    from cut_cross_entropy import linear_cross_entropy as cut  # type: ignore[import-not-found]

    return lambda hidden, weight, labels: cut(hidden, weight, labels, impl="torch_compile")


# Each value builds a loss when it is needed: compiling takes a minute.
CANDIDATES: dict[str, Callable[[], Loss]] = {
    "eager": lambda: eager,
    "torch, no options": lambda: lambda hidden, weight, labels: F.linear_cross_entropy(hidden, weight, labels),
    "torch, auto": torch_operator,
    "torch, batch_chunk_size=256": lambda: torch_operator(batch_chunk_size=256, chunking_method=None),
    "torch, accurate": lambda: torch_operator(acc_policy="accurate"),
    "torch.compile(eager)": lambda: torch.compile(eager, dynamic=False),
    "assay": lambda: linear_cross_entropy,
}
if importlib.util.find_spec("cut_cross_entropy") and importlib.util.find_spec("triton"):
    CANDIDATES["cut-cross-entropy"] = cut_cross_entropy
COMPILED = ("torch.compile(eager)", "cut-cross-entropy")
SLOW = ("torch, auto",)  # minutes a call beyond LARGE words in bfloat16
LARGE = 32_000


def peak(candidate: str, tokens: int, features: int, classes: int, dtype: torch.dtype) -> float:
    """Return the bytes that one step adds, in this process."""
    loss, generator = CANDIDATES[candidate](), torch.Generator().manual_seed(0)
    inputs = head(tokens, features, classes, dtype, generator)
    # A compiled function has to see the real shapes first.
    step(loss, *(inputs if candidate in COMPILED else head(64, features, 512, dtype, generator)))
    return peak_memory(lambda: step(loss, *inputs))


def compare(
    names: list[str], size: tuple[int, int, int], dtype: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return a row per candidate for one size and dtype."""
    inputs = head(*size, getattr(torch, dtype), torch.Generator().manual_seed(0))
    losses = {name: CANDIDATES[name]() for name in names}
    calls = {name: lambda loss=loss: step(loss, *inputs) for name, loss in losses.items()}
    times = interleaved(calls, arguments.rounds)
    clock = "cpu_seconds" if arguments.threads == 1 else "seconds"
    rows = []
    for name, loss in losses.items():
        place = ["--tokens", size[0], "--features", size[1], "--classes", size[2], "--threads", arguments.threads]
        memory = in_fresh_process(__file__, *place, "--dtypes", dtype, "--peak", name)["peak_memory"]
        row = {"size": " x ".join(map(str, size)), "dtype": dtype, "candidate": name, "memory_MiB": memory / 2**20}
        found = errors(step(loss, *inputs), *inputs)
        rows.append({**row, **times[name], **found})
        print(f"# {row['size']} {dtype} {name}: {times[name][clock]:.2f} s, {row['memory_MiB']:.0f} MiB", flush=True)
    for row in rows:
        row["time / eager"] = row[clock] / rows[0][clock]
        row["memory / eager"] = row["memory_MiB"] / rows[0]["memory_MiB"]
    return rows


def summary(rows: list[dict[str, Any]]) -> Mapping[str, float]:
    """Return what the targets speak of, per size and dtype."""
    found: dict[str, float] = {}
    by = {(row["size"], row["dtype"], row["candidate"]): row for row in rows}
    for (size, dtype, candidate), row in by.items():
        if candidate != "assay":
            continue
        where = f"{size} {dtype}"
        found[f"{where}: time / eager"] = row["time / eager"]
        found[f"{where}: memory / eager"] = row["memory / eager"]
        compiled = by.get((size, dtype, "torch.compile(eager)"))
        if compiled:
            found[f"{where}: time / torch.compile"] = row["time / eager"] / compiled["time / eager"]
            found[f"{where}: memory / torch.compile"] = row["memory / eager"] / compiled["memory / eager"]
    return found


def main() -> None:
    """Measure and write bench/results/linear_cross_entropy.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2048 x 512 x 32000, 3 rounds")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--classes", type=int, nargs="+", default=[32000, 128000])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--peak", choices=list(CANDIDATES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.tokens, arguments.features, arguments.classes, arguments.rounds = 2048, 512, [32000], 3
    if arguments.peak:
        size = (arguments.tokens, arguments.features, arguments.classes[0])
        print(json.dumps({"peak_memory": peak(arguments.peak, *size, getattr(torch, arguments.dtypes[0]))}))
        return
    names = ["eager", *(name for name in arguments.only if name != "eager")]
    rows: list[dict[str, Any]] = []
    for classes in arguments.classes:
        for dtype in arguments.dtypes:
            timed = [name for name in names if classes <= LARGE or name not in SLOW]
            rows += compare(timed, (arguments.tokens, arguments.features, classes), dtype, arguments)
    settings = {"threads": arguments.threads, "rounds": arguments.rounds, "targets": TARGETS}
    write_results("linear_cross_entropy", rows=rows, summary=summary(rows), settings=settings)


if __name__ == "__main__":
    main()
