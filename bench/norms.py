"""RMSNorm, LayerNorm and rotary embedding, forward and backward: time, peak memory, saved bytes, errors, in one run.

Every candidate against eager code as Hugging Face has it (for LayerNorm that is `F.layer_norm`): PyTorch's own
function, torch.compile of eager, and Assay's. Times are interleaved in one process and are CPU times with one thread,
wall times with more. Peak memory comes from a fresh process per candidate and counts results and gradients, which all
have; "extra" is what is left without these. Saved bytes are those of distinct storages that autograd keeps apart from
the arguments. Errors are relative to float64. `--quick` takes fewer tokens and rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from _measure import in_fresh_process, interleaved, peak_memory, write_results
from assay.kernels.layer_normalisation.functional import layer_norm
from assay.kernels.rms_normalisation.functional import rms_norm
from assay.kernels.rotary_embedding.functional import rope

EPS, FEATURES = 1e-6, 64  # of a head; a quarter as many heads for keys as for queries
TARGETS = {
    "time of eager, at most": 1.0,
    "saved for backward, at most": "rms_norm x and r, layer_norm x, mean and r, rope 0",
}
Tensors = tuple[Tensor, ...]
Call = Callable[..., Tensors]


def eager_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """What `LlamaRMSNorm` of the transformers library computes."""
    values = x.to(working(x.dtype))
    values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * values.to(x.dtype)


def working(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for half precision."""
    return torch.promote_types(dtype, torch.float32)


def eager_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """What `apply_rotary_pos_emb` of the transformers library computes."""

    def rotate_half(x: Tensor) -> Tensor:
        return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)

    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def of_projections(rotate: Callable[..., tuple[Tensor, Tensor]]) -> Call:
    """Rotate what the projections of an attention layer return: (1, T, heads x D), seen as (1, heads, T, D)."""

    def call(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensors:
        return rotate(*(x.unflatten(-1, (-1, FEATURES)).transpose(1, 2) for x in (queries, keys)), cos, sin)

    return call


def norm(function: Callable[..., Tensor]) -> Call:
    """Give a function of (x, shape, weight, ...) the form of a candidate."""
    return lambda x, *parameters: (function(x, x.shape[-1:], *parameters, EPS),)


def compiled(call: Call) -> Call:
    """Compile for the shapes that come."""
    return torch.compile(call, dynamic=False)


# Each value builds a candidate when it is needed; the first is the baseline.
OPERATIONS: dict[str, dict[str, Callable[[], Call]]] = {
    "rms_norm": {
        "eager": lambda: lambda x, weight: (eager_rms_norm(x, weight),),
        "F.rms_norm": lambda: norm(F.rms_norm),
        "torch.compile(eager)": lambda: compiled(lambda x, weight: (eager_rms_norm(x, weight),)),
        "assay": lambda: norm(rms_norm),
    },
    "layer_norm": {
        "F.layer_norm": lambda: norm(F.layer_norm),
        "torch.compile(F.layer_norm)": lambda: compiled(norm(F.layer_norm)),
        "assay": lambda: norm(layer_norm),
    },
    "rope": {
        "eager": lambda: of_projections(eager_rope),
        "torch.compile(eager)": lambda: compiled(of_projections(eager_rope)),
        "assay": lambda: of_projections(rope),
    },
}


def arguments_of(operation: str, tokens: int, width: int, dtype: torch.dtype) -> tuple[Tensors, Tensors]:
    """Return an operation's tensors (those that want gradients first) and its upstream gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    if operation == "rope":
        angles = torch.arange(tokens).unsqueeze(1) / 10000 ** (torch.arange(0, FEATURES, 2) / FEATURES)
        angles = angles.repeat(1, 2).unsqueeze(0)
        tensors = [normal(1, tokens, width).requires_grad_(), normal(1, tokens, width // 4).requires_grad_()]
        upstream = [normal(1, tokens, n // FEATURES, FEATURES).transpose(1, 2) for n in (width, width // 4)]
        return (*tensors, angles.cos().to(dtype), angles.sin().to(dtype)), tuple(upstream)
    parameters = [1 + 0.1 * normal(width) for _ in range(1 if operation == "rms_norm" else 2)]
    return tuple(t.requires_grad_() for t in (normal(tokens, width), *parameters)), (normal(tokens, width),)


def step(call: Call, tensors: Tensors, upstream: Tensors) -> list[Tensor]:
    """Return results and gradients."""
    results = call(*tensors)
    return [*results, *torch.autograd.grad(results, [t for t in tensors if t.requires_grad], upstream)]


def saved_bytes(call: Call, tensors: Tensors) -> int:
    """Return the bytes of distinct storages that are kept for backward, without those of the arguments."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = call(*tensors)
    for given in tensors:
        kept.pop(given.untyped_storage().data_ptr(), None)
    del results
    return sum(kept.values())


def errors(found: list[Tensor], exact: list[Tensor]) -> dict[str, float]:
    """Return the relative errors, in norm, of the results and of the gradients: the largest of each."""
    off = [
        float((a.detach().double() - e.detach()).norm() / e.detach().norm()) for a, e in zip(found, exact, strict=True)
    ]
    results = 2 if len(found) == 4 else 1
    return {"result_error": max(off[:results]), "gradient_error": max(off[results:])}


def peak(operation: str, candidate: str, tokens: int, width: int, dtype: torch.dtype) -> dict[str, float]:
    """Return the bytes that one step adds, in this process, and those of its results and gradients."""
    call = OPERATIONS[operation][candidate]()
    inputs = arguments_of(operation, tokens, width, dtype)
    # A compiled function has to see the real shapes first.
    warm = inputs if "compile" in candidate else arguments_of(operation, 64, width, dtype)
    results = sum(t.nbytes for t in step(call, *warm)) * tokens // warm[0][0].shape[-2]
    return {"peak_memory": peak_memory(lambda: step(call, *inputs)), "results": results}


def compare(operation: str, dtype: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per candidate of an operation."""
    size, kind = (arguments.tokens, arguments.width), getattr(torch, dtype)
    tensors, upstream = arguments_of(operation, *size, kind)
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    exact = step(next(iter(OPERATIONS[operation].values()))(), tuple(wide), tuple(u.double() for u in upstream))
    calls = {name: build() for name, build in OPERATIONS[operation].items()}
    steps = {name: lambda call=call: step(call, tensors, upstream) for name, call in calls.items()}
    times = interleaved(steps, arguments.rounds, patience=20)
    rows = []
    for name, call in calls.items():
        place = ["--tokens", size[0], "--width", size[1], "--threads", arguments.threads, "--dtypes", dtype]
        memory = in_fresh_process(__file__, *place, "--peak", operation, name)
        row: dict[str, Any] = {"operation": operation, "dtype": dtype, "candidate": name}
        row["memory_MiB"] = memory["peak_memory"] / 2**20
        row["extra_MiB"] = (memory["peak_memory"] - memory["results"]) / 2**20
        row["saved / input"] = saved_bytes(call, tensors) / tensors[0].nbytes
        rows.append({**row, **times[name], **errors(step(call, tensors, upstream), exact)})
        print(
            f"# {operation} {dtype} {name}: {times[name]['cpu_seconds']:.4f} s, {row['memory_MiB']:.0f} MiB", flush=True
        )
    clock = "cpu_seconds" if arguments.threads == 1 else "seconds"
    for row in rows:
        row["time / eager"] = row[clock] / rows[0][clock]
        row["memory / eager"] = row["memory_MiB"] / rows[0]["memory_MiB"]
    return rows


def summary(rows: list[dict[str, Any]]) -> Mapping[str, float]:
    """Return what the targets speak of, per operation and dtype."""
    found: dict[str, float] = {}
    for row in rows:
        where = f"{row['operation']} {row['dtype']}"
        if row["candidate"] == "assay":
            found[f"{where}: time / eager"] = row["time / eager"]
            found[f"{where}: memory / eager"] = row["memory / eager"]
            found[f"{where}: saved / input, apart from arguments"] = row["saved / input"]
            compiler = next(r for r in rows if r["candidate"].startswith("torch.compile") and r["dtype"] == row["dtype"]
                            and r["operation"] == row["operation"])  # fmt: skip
            found[f"{where}: time / torch.compile"] = row["time / eager"] / compiler["time / eager"]
    return found


def main() -> None:
    """Measure and write bench/results/norms.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2048 tokens, 5 rounds")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(OPERATIONS), default=list(OPERATIONS))
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.tokens, arguments.rounds = 2048, 5
    if arguments.peak:
        size = (arguments.tokens, arguments.width)
        print(json.dumps(peak(*arguments.peak, *size, getattr(torch, arguments.dtypes[0]))))
        return
    rows = [row for name in arguments.only for dtype in arguments.dtypes for row in compare(name, dtype, arguments)]
    settings = {name: getattr(arguments, name) for name in ("tokens", "width", "threads", "rounds")}
    write_results("norms", rows=rows, summary=summary(rows), settings={**settings, "targets": TARGETS})


if __name__ == "__main__":
    main()
