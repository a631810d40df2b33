"""Gated activations, cross-entropy and divergences, forward and backward: time and peak memory, in one run.

Every operator against the same in eager PyTorch and against torch.compile of that. Times are interleaved in one process
and are CPU times with one thread, wall times with more; peak memory comes from a fresh process per candidate, counts
what forward and backward add to the inputs, and so includes the gradients (for gated activations the result too). The
inputs of a loss are made by an identity, so that its logits are no leaf, as behind a model; `in_place` may then take
their memory. Errors of the gradient are relative to float64, on a few rows. `--quick` takes smaller tensors and fewer
rounds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from _measure import in_fresh_process, interleaved, peak_memory, write_results
from assay.kernels import cross_entropy, geglu, jsd, kl_div, linear_jsd, linear_jsd_reference, swiglu

Step = Callable[..., Tensor]


def eager_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """What careful training code does: the loss in float32."""
    return F.cross_entropy(logits.float(), labels)


def eager_kl_div(logits: Tensor, targets: Tensor) -> Tensor:
    """KL(P|Q) by PyTorch's function."""
    return F.kl_div(logits, targets, reduction="batchmean", log_target=True)


def eager_jsd(student: Tensor, teacher: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of log-probabilities by PyTorch's functions, per row."""
    mixture = torch.logaddexp(student, teacher) - math.log(2)
    both = (F.kl_div(mixture, of, reduction="sum", log_target=True) for of in (student, teacher))
    return sum(both, student.new_zeros(())) / (2 * len(student))


def eager_linear_jsd(hidden: Tensor, weight: Tensor, seen: Tensor, teacher_weight: Tensor) -> Tensor:
    """Both logits, their log-softmaxes in float32, and the divergence."""
    student = F.linear(hidden, weight).float().log_softmax(-1)
    with torch.no_grad():
        teacher = F.linear(seen, teacher_weight).float().log_softmax(-1)
    return eager_jsd(student, teacher)


# Per operator: eager code, and Assay's ways by name.
OPERATORS: dict[str, tuple[Step, dict[str, Step]]] = {
    "swiglu": (lambda a, b: F.silu(a) * b, {"assay": swiglu}),
    "geglu": (lambda a, b: F.gelu(a, approximate="tanh") * b, {"assay": geglu}),
    "cross_entropy": (
        eager_cross_entropy,
        {"assay": cross_entropy, "assay, in place": partial(cross_entropy, in_place=True)},
    ),
    "kl_div": (eager_kl_div, {"assay": partial(kl_div, reduction="batchmean", log_target=True)}),
    "jsd": (eager_jsd, {"assay": jsd}),
    "linear_jsd": (eager_linear_jsd, {"assay": linear_jsd}),
}
# What is float64 if its inputs are, where eager code is float32.
EXACT: dict[str, Step] = {"cross_entropy": F.cross_entropy, "linear_jsd": linear_jsd_reference}
LOSSES = ("cross_entropy", "kl_div", "jsd")


def candidate(operator: str, name: str) -> Step:
    """Return an operator in one way; torch.compile's is made anew."""
    eager, ours = OPERATORS[operator]
    if name == "torch.compile(eager)":
        return torch.compile(eager, dynamic=False)
    return eager if name == "eager" else ours[name]


def names(operator: str) -> list[str]:
    """Return the candidates of an operator, the baseline first."""
    return ["eager", "torch.compile(eager)", *OPERATORS[operator][1]]


def inputs(operator: str, tokens: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return an operator's tensors: (tokens, width), and for `linear_jsd` heads of 512 features over width classes."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    if operator == "cross_entropy":
        return normal(tokens, width).requires_grad_(), torch.randint(0, width, (tokens,), generator=generator)
    if operator in ("kl_div", "jsd"):
        return normal(tokens, width).log_softmax(-1).requires_grad_(), normal(tokens, width).log_softmax(-1)
    if operator == "linear_jsd":
        student = [normal(tokens, 512).requires_grad_(), (normal(width, 512) / 512**0.5).requires_grad_()]
        return (*student, normal(tokens, 512), normal(width, 512) / 512**0.5)
    return normal(tokens, width).requires_grad_(), normal(tokens, width).requires_grad_()


def step(operator: str, call: Step, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Run forward and backward, and return the gradients."""
    wanted = [t for t in tensors if t.requires_grad]
    if operator in LOSSES:
        # A view of the leaf, not the leaf: its memory may be taken. The next step then starts from other logits, which
        # takes as long.
        tensors = (tensors[0].view_as(tensors[0]), *tensors[1:])
    result = call(*tensors)
    upstream = result.detach() if result.dim() else torch.ones_like(result)
    return list(torch.autograd.grad(result, wanted, upstream))


def peak(operator: str, name: str, size: tuple[int, int], dtype: torch.dtype) -> float:
    """Return the bytes that one step adds, in this process."""
    call = candidate(operator, name)
    # Gated activations compile their bodies for large tensors.
    compiled = name.startswith("torch.compile") or (name != "eager" and operator in ("swiglu", "geglu"))
    # What the libraries set up on first use is no part of a step; a compiled function has to see the real shapes.
    step(operator, call, inputs(operator, *(size if compiled else (16, 64)), dtype))
    tensors = inputs(operator, *size, dtype)
    return peak_memory(lambda: step(operator, call, tensors))


def error(operator: str, call: Step, width: int, dtype: torch.dtype) -> float:
    """Return the relative error, in norm, of the first gradient on 32 rows against eager code in float64."""
    tensors = inputs(operator, 32, width, dtype)
    wide = tuple(t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t for t in tensors)
    exact = step(operator, EXACT.get(operator, OPERATORS[operator][0]), wide)[0]
    return float((step(operator, call, tensors)[0].double() - exact).norm() / exact.norm())


def compare(operator: str, size: tuple[int, int], dtype: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per candidate for one operator and dtype."""
    kind = getattr(torch, dtype)
    tensors = inputs(operator, *size, kind)
    calls = {name: candidate(operator, name) for name in names(operator) if name in arguments.candidates}
    steps = {name: partial(step, operator, call, tensors) for name, call in calls.items()}
    times = interleaved(steps, arguments.rounds)
    clock = "cpu_seconds" if arguments.threads == 1 else "seconds"
    rows: list[dict[str, Any]] = []
    for name, call in calls.items():
        place = ["--operators", operator, "--tokens", size[0], "--width", size[1], "--dtypes", dtype]
        memory = in_fresh_process(__file__, *place, "--threads", arguments.threads, "--peak", name)["peak_memory"]
        row: dict[str, Any] = {
            "operator": operator,
            "size": " x ".join(map(str, size)),
            "dtype": dtype,
            "candidate": name,
        }
        row |= {"memory_MiB": memory / 2**20, **times[name], "gradient_error": error(operator, call, size[1], kind)}
        rows.append(row)
        print(f"# {operator} {dtype} {name}: {row[clock]:.3f} s, {row['memory_MiB']:.0f} MiB", flush=True)
    for row in rows:
        row["time / eager"] = row[clock] / rows[0][clock]
        row["memory / eager"] = row["memory_MiB"] / rows[0]["memory_MiB"]
    return rows


def main() -> None:
    """Measure and write bench/results/activations_and_losses.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1024 tokens, 3 rounds")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, help="columns; by default 2816 for activations, 32000 for losses")
    parser.add_argument("--operators", nargs="+", choices=list(OPERATORS), default=list(OPERATORS))
    parser.add_argument(
        "--candidates", nargs="+", default=["eager", "torch.compile(eager)", "assay", "assay, in place"]
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.tokens, arguments.rounds = 1024, 3
    if arguments.peak:
        size, dtype = (arguments.tokens, arguments.width), getattr(torch, arguments.dtypes[0])
        print(json.dumps({"peak_memory": peak(arguments.operators[0], arguments.peak, size, dtype)}))
        return
    rows: list[dict[str, Any]] = []
    for operator in arguments.operators:
        width = arguments.width or (2816 if operator in ("swiglu", "geglu") else 32000)
        for dtype in arguments.dtypes:
            rows += compare(operator, (arguments.tokens, width), dtype, arguments)
    summary = {
        f"{row['operator']} {row['dtype']} {row['candidate']}: {what} / eager": row[f"{what} / eager"]
        for row in rows
        if row["candidate"].startswith("assay")
        for what in ("time", "memory")
    }
    settings = {"threads": arguments.threads, "rounds": arguments.rounds, "quick": arguments.quick}
    write_results("activations_and_losses", rows=rows, summary=summary, settings=settings)


if __name__ == "__main__":
    main()
