"""Group-rational activation, forward and backward: time, peak memory and rounding errors, in one run.

Every candidate against the plain version in eager mode, which is autograd through Horner's scheme: the same with powers
written out, torch.compile of both, Assay's operator with and without a compiler, KAT's accumulating backward pass, and
GELU for scale. Times are interleaved in one process and are CPU times with one thread, wall times with more; peak
memory comes from a fresh process per candidate and includes result and gradients. Errors are relative to float64, in
norm. `--quick` takes fewer rows and rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from _measure import in_fresh_process, interleaved, peak_memory, write_results
from assay.kernels.rational_activation.accumulating import group_rational_gradients_accumulating
from assay.kernels.rational_activation.functional import group_rational
from assay.kernels.rational_activation.reference import group_rational_reference

Activation = Callable[[Tensor, Tensor, Tensor], Tensor]

GROUPS, NUMERATOR, DENOMINATOR = 8, 6, 4
TARGETS = {
    "time of eager, at most": 0.2,
    "time of torch.compile, at most": 1.0,
    "extra memory of eager, at most": 1 / 3,
}


def powers(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """Explicit powers and weighted sums."""
    z = x.unflatten(-1, (GROUPS, -1))
    distance = z.abs()
    above = sum(numerator[:, i, None] * z**i for i in range(NUMERATOR))
    below = 1 + sum(denominator[:, j, None].abs() * distance ** (j + 1) for j in range(DENOMINATOR))
    return (above / below).flatten(-2)


class Accumulating(torch.autograd.Function):
    """Assay's forward pass with KAT's backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        """Save the inputs."""
        ctx.save_for_backward(x, numerator, denominator)
        return group_rational(x, numerator, denominator, compiled=False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Add element by element."""
        return group_rational_gradients_accumulating(upstream, *ctx.saved_tensors)


def gelu(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """What a transformer has in its place."""
    return torch.nn.functional.gelu(x)


# Each value builds a function when it is needed: compiling takes seconds.
CANDIDATES: dict[str, Callable[[], Activation]] = {
    "eager": lambda: group_rational_reference,
    "eager, powers": lambda: powers,
    "torch.compile(eager)": lambda: torch.compile(group_rational_reference),
    "torch.compile(powers)": lambda: torch.compile(powers),
    "assay, not compiled": lambda: partial(group_rational, compiled=False),
    "assay, compiled": lambda: partial(group_rational, compiled=True),
    "accumulating (KAT)": lambda: Accumulating.apply,
    "GELU": lambda: gelu,
}


def inputs(rows: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x (R, D), coefficients (G, 6) and (G, 4), and the upstream gradient (R, D)."""
    generator = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(rows, channels, generator=generator).to(dtype) for _ in range(2))
    numerator = 0.3 * torch.randn(GROUPS, NUMERATOR, generator=generator)
    denominator = 0.3 * torch.randn(GROUPS, DENOMINATOR, generator=generator)
    return x.requires_grad_(), numerator.requires_grad_(), denominator.requires_grad_(), upstream


def step(function: Activation, x: Tensor, a: Tensor, b: Tensor, upstream: Tensor) -> list[Tensor | None]:
    """Return the result and the gradients."""
    y = function(x, a, b)
    return [y.detach(), *torch.autograd.grad(y, (x, a, b), upstream, allow_unused=True)]


def exact(x: Tensor, a: Tensor, b: Tensor, upstream: Tensor) -> list[Tensor | None]:
    """Return result and gradients in float64 of the same numbers."""
    wide = [t.detach().double().requires_grad_() for t in (x, a, b)]
    return step(group_rational_reference, *wide, upstream.double())


def errors(found: list[Tensor | None], expected: list[Tensor | None]) -> dict[str, float]:
    """Return relative errors in norm."""
    names = ("result_error", "input_error", "numerator_error", "denominator_error")
    return {
        name: float((u.double() - v).norm() / v.norm())
        for name, u, v in zip(names, found, expected, strict=True)
        if u is not None and v is not None
    }


def compare(names: list[str], dtype: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per candidate for one dtype."""
    tensors = inputs(arguments.rows, arguments.channels, getattr(torch, dtype))
    functions = {name: CANDIDATES[name]() for name in names}
    calls = {name: lambda f=function: step(f, *tensors) for name, function in functions.items()}
    times = interleaved(calls, arguments.rounds)
    clock = "cpu_seconds" if arguments.threads == 1 else "seconds"
    expected, rows = exact(*tensors), []
    for name, function in functions.items():
        place = ["--rows", arguments.rows, "--channels", arguments.channels, "--threads", arguments.threads]
        memory = in_fresh_process(__file__, *place, "--dtypes", dtype, "--peak", name)["peak_memory"]
        row = {"size": f"{arguments.rows} x {arguments.channels}", "dtype": dtype, "candidate": name}
        found = {} if name == "GELU" else errors(step(function, *tensors), expected)
        rows.append({**row, "memory_MiB": memory / 2**20, **times[name], **found})
        print(f"# {dtype} {name}: {1e3 * times[name][clock]:.0f} ms, {memory / 2**20:.0f} MiB", flush=True)
    # Result and input gradient are what every candidate has to return.
    floor = 2 * tensors[0].numel() * tensors[0].element_size() / 2**20
    for row in rows:
        row["time / eager"] = row[clock] / rows[0][clock]
        row["extra memory / eager"] = max(0.0, row["memory_MiB"] - floor) / (rows[0]["memory_MiB"] - floor)
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return what the targets speak of, per dtype."""
    found: dict[str, float] = {}
    by = {(row["dtype"], row["candidate"]): row for row in rows}
    for (dtype, candidate), row in by.items():
        if not candidate.startswith("assay"):
            continue
        where = f"{dtype} {candidate}"
        found[f"{where}: time / eager"] = row["time / eager"]
        found[f"{where}: extra memory / eager"] = row["extra memory / eager"]
        compiled = [by[key]["time / eager"] for key in by if key[0] == dtype and key[1].startswith("torch.compile")]
        if compiled:
            found[f"{where}: time / best torch.compile"] = row["time / eager"] / min(compiled)
    return found


def main() -> None:
    """Measure and write bench/results/group_rational.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2048 rows, 3 rounds")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--peak", choices=list(CANDIDATES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.rows, arguments.rounds = 2048, 3
    if arguments.peak:
        function = CANDIDATES[arguments.peak]()
        tensors = inputs(arguments.rows, arguments.channels, getattr(torch, arguments.dtypes[0]))
        step(function, *tensors)  # compiling is no part of a step
        print(json.dumps({"peak_memory": peak_memory(lambda: step(function, *tensors))}))
        return
    names = ["eager", *(name for name in arguments.only if name != "eager")]
    rows = [row for dtype in arguments.dtypes for row in compare(names, dtype, arguments)]
    settings = {"threads": arguments.threads, "rounds": arguments.rounds, "groups": GROUPS, "targets": TARGETS}
    write_results("group_rational", rows=rows, summary=summary(rows), settings=settings)


if __name__ == "__main__":
    main()
