"""COAT's memory and its price on a CPU: optimizer states, step times, and what layers save for backward, in one run.

States: bytes per parameter after a step, and the time of a step against `torch.optim.AdamW` one parameter at a time,
multi-tensor and fused, on the parameters of a small decoder. Peak memory of a step comes from a fresh process.
Activations: the norm and the gated MLP of a decoder layer, in bfloat16 and with FP8 activations: bytes that autograd
holds per token, and the time of forward and backward. Times are CPU times with one thread. `--quick` takes fewer
parameters, tokens and rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from _measure import in_fresh_process, interleaved, peak_memory, write_results
from assay.kernels.rms_normalisation.functional import RMSNorm
from assay.nn.fp8 import FP8MLP, FP8RMSNorm
from assay.optim.coat_adamw import COATAdamW
from assay.papers.coat.study import GatedMLP, saved_bytes, state_bytes

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW, one by one": lambda p: torch.optim.AdamW(p, foreach=False),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, fused=True),
    "COATAdamW": COATAdamW,
    "COATAdamW, expand=False": lambda p: COATAdamW(p, expand=False),
    "COATAdamW, bfloat16": lambda p: COATAdamW(p, exp_avg_dtype="bfloat16", exp_avg_sq_dtype="bfloat16"),
    "COATAdamW, float32": lambda p: COATAdamW(p, exp_avg_dtype="float32", exp_avg_sq_dtype="float32"),
}


def parameters(features: int, layers: int) -> list[nn.Parameter]:
    """Return parameters of a decoder's shapes, each with a gradient."""
    hidden = 11 * features // 4
    shapes = [(3 * features, features), (features, features), (features,), (features,)]
    shapes += [(hidden, features), (hidden, features), (features, hidden)]
    generator, made = torch.Generator().manual_seed(0), []
    for shape in shapes * layers:
        made.append(nn.Parameter(torch.randn(shape, generator=generator)))
        made[-1].grad = torch.randn(shape, generator=generator)
    return made


def optimizers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per optimizer: bytes of state, time of a step, peak memory of a step beyond the state."""
    made = {name: make(parameters(arguments.features, arguments.layers)) for name, make in OPTIMIZERS.items()}
    times = interleaved({name: o.step for name, o in made.items()}, arguments.rounds, patience=100)
    count = sum(p.numel() for p in parameters(arguments.features, arguments.layers))
    rows = []
    for name, optimizer in made.items():
        place = ["--features", arguments.features, "--layers", arguments.layers, "--peak", name]
        row = {"what": name, "parameters": count, "bytes per parameter": state_bytes(optimizer) / count}
        row |= {"ns per parameter": times[name]["cpu_seconds"] / count * 1e9}
        row |= {"peak of a step, MiB": in_fresh_process(__file__, *place)["peak_memory"] / 2**20}
        rows.append(row)
    for row in rows:
        row["time / AdamW"] = row["ns per parameter"] / rows[0]["ns per parameter"]
        row["state / AdamW"] = row["bytes per parameter"] / rows[0]["bytes per parameter"]
    return rows


def step_peak(name: str, arguments: argparse.Namespace) -> float:
    """Return the bytes that a step adds at its highest in this process, the state being there already."""
    optimizer = OPTIMIZERS[name](parameters(arguments.features, arguments.layers))
    optimizer.step()
    return peak_memory(optimizer.step)


def blocks(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per block: bytes saved per token, and the time of forward and backward."""
    features, tokens = arguments.features, arguments.tokens
    hidden = 11 * features // 4
    made: dict[str, nn.Module] = {
        "bfloat16 norm + MLP": nn.Sequential(RMSNorm(features, eps=1e-5), GatedMLP(features, hidden)),
        "FP8 norm + MLP": nn.Sequential(FP8RMSNorm(features), FP8MLP(features, hidden)),
    }
    x = torch.randn(tokens, features, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    sizes = {name: saved_bytes(block, features, tokens) / tokens for name, block in made.items()}
    calls = {name: lambda block=block: block(x).sum().backward() for name, block in made.items()}
    times = interleaved(calls, arguments.rounds, patience=100)
    rows: list[dict[str, Any]] = [
        {"what": name, "tokens": tokens, "saved bytes per token": sizes[name], "seconds": times[name]["cpu_seconds"]}
        for name in made
    ]
    for row in rows:
        row["saved / bfloat16"] = row["saved bytes per token"] / rows[0]["saved bytes per token"]
        row["time / bfloat16"] = row["seconds"] / rows[0]["seconds"]
    return rows


def main() -> None:
    """Measure and write bench/results/coat.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="features 256, 2 layers, 256 tokens, 3 rounds")
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", choices=list(OPTIMIZERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(json.dumps({"peak_memory": step_peak(arguments.peak, arguments)}))
        return
    if arguments.quick:
        arguments.features, arguments.layers, arguments.tokens, arguments.rounds = 256, 2, 256, 3
    states, activations = optimizers(arguments), blocks(arguments)
    ours = next(row for row in states if row["what"] == "COATAdamW")
    summary = {
        "COATAdamW: state / AdamW": ours["state / AdamW"],
        "COATAdamW: time of a step / AdamW one by one": ours["time / AdamW"],
        "FP8 block: saved / bfloat16": activations[1]["saved / bfloat16"],
        "FP8 block: time / bfloat16": activations[1]["time / bfloat16"],
    }
    settings = {name: getattr(arguments, name) for name in ("features", "layers", "tokens", "rounds")}
    write_results("coat", rows=states + activations, summary=summary, settings={"threads": 1, **settings})


if __name__ == "__main__":
    main()
