"""What a step of a first-order optimizer costs, against torch's AdamW and pytorch_optimizer's versions, in one run.

A step updates 25 million float32 parameters in 100 tensors, with gradients that are there; eager, and compiled whole
(`torch.compile(optimizer.step, fullgraph=True)`, which fails where there is a graph break). Optimizers update shared
parameters at a tiny rate, each with states of its own; eager and compiled steps of one optimizer share them. Those of
pytorch_optimizer have a set of parameters to themselves, since some of them change gradients in place. Times are
interleaved, CPU times with one thread; a compiled step is warmed by three calls, the first of which compiles.

The goals: compiled whole at most 2 times fused AdamW, eager at most 1.3 times foreach AdamW, and at most half of
pytorch_optimizer's time for the same optimizer.

    python bench/optimizer_steps.py            # everything, written to bench/results
    python bench/optimizer_steps.py --quick    # 4 tensors, few rounds, nothing written
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor.config

import assay.optim
from _measure import interleaved, table, write_results

Step = Callable[[], object]
RATE = 1e-6
FUSED, FOREACH = "torch AdamW, fused", "torch AdamW, foreach"
# Ours by name, and what the same optimizer is called in pytorch_optimizer; a name that Assay does not have is left out.
OURS = {
    "DiffGrad": "DiffGrad",
    "LAMB": "Lamb",
    "LARS": "LARS",
    "StableSPAM": "StableSPAM",
    "SPAM": "SPAM",
    "ExponentiatedGradient": None,
    "COATAdamW": None,
}
# compiles whole, but a hundred tensors would take longer than all else here
EAGER_ONLY = ("COATAdamW",)


@dataclass
class Candidate:
    """One way to step: what is called, how long its first call took, what its states take, whose peer it is."""

    step: Step
    optimizer: torch.optim.Optimizer
    first_seconds: float = 0.0
    peer: str | None = None


def parameters(tensors: int, entries: int) -> list[torch.nn.Parameter]:
    """Return positive parameters with gradients, the same every time."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(0.1 + torch.rand(entries, generator=generator)) for _ in range(tensors)]
    # matrices, since a vector is left out of LAMB's and LARS's adaptation
    params = [torch.nn.Parameter(p.detach().view(-1, 250)) for p in params]
    for p in params:
        p.grad = 1e-2 * torch.randn(p.shape, generator=generator)
    return params


def eager(optimizer: torch.optim.Optimizer, peer: str | None = None) -> Candidate:
    """Return the optimizer's own step."""
    return Candidate(optimizer.step, optimizer, peer=peer)


def compiled(optimizer: torch.optim.Optimizer, fullgraph: bool = True, peer: str | None = None) -> Candidate:
    """Return the optimizer's step, compiled and warmed."""
    step = torch.compile(optimizer.step, fullgraph=fullgraph)
    start = time.process_time()
    step()
    seconds = time.process_time() - start
    step()
    step()
    return Candidate(step, optimizer, seconds, peer)


def torchs(params: list[torch.nn.Parameter]) -> dict[str, Candidate]:
    """Return AdamW in torch's four ways."""
    adamw = {way: torch.optim.AdamW(params, lr=RATE, **{way: True}) for way in ("fused", "foreach")}  # type: ignore[arg-type]
    return {
        FUSED: eager(adamw["fused"]),
        FOREACH: eager(adamw["foreach"]),
        "torch AdamW, for-loop": eager(torch.optim.AdamW(params, lr=RATE, foreach=False)),
        # torch's own step breaks the graph once, before anything is computed
        f"{FOREACH}, compiled": compiled(adamw["foreach"], fullgraph=False),
    }


def peers(params: list[torch.nn.Parameter]) -> dict[str, Candidate]:
    """Return pytorch_optimizer's versions, where it is installed."""
    try:
        import pytorch_optimizer
    except ImportError:
        print("pytorch_optimizer is not installed: pip install --no-deps pytorch_optimizer")
        return {}
    names = [name for name in OURS.values() if name] + ["AdamW"]
    return {f"pytorch_optimizer {n}": eager(getattr(pytorch_optimizer, n)(params, lr=RATE)) for n in names}


def ours(params: list[torch.nn.Parameter]) -> dict[str, Candidate]:
    """Return Assay's optimizers, eager and compiled where a step compiles whole."""
    found: dict[str, Candidate] = {}
    for name, other in OURS.items():
        if not hasattr(assay.optim, name):
            print(f"assay.optim has no {name}")
            continue
        optimizer: Any = getattr(assay.optim, name)(params, lr=RATE)
        peer = f"pytorch_optimizer {other}" if other else None
        found[name] = eager(optimizer, peer)
        if name in EAGER_ONLY:
            continue
        try:
            found[f"{name}, compiled"] = compiled(optimizer, peer=peer)
        except torch._dynamo.exc.TorchDynamoException as error:
            print(f"{name} does not compile whole: {str(error).splitlines()[0]}")
    return found


def state_bytes(optimizer: torch.optim.Optimizer, entries: int) -> float:
    """Return the bytes of states per parameter entry; step counts and other single numbers are in it."""
    # some of pytorch_optimizer's keep numbers beside the parameters' dictionaries
    states = [state.values() for state in optimizer.state.values() if isinstance(state, dict)]
    return sum(t.nbytes for values in states for t in values if isinstance(t, torch.Tensor)) / entries


def compare(tensors: int, entries: int, rounds: int) -> list[dict[str, object]]:
    """Return a row per candidate."""
    params = parameters(tensors, entries)
    candidates = {**torchs(params), **peers(parameters(tensors, entries)), **ours(params)}
    times = interleaved({name: c.step for name, c in candidates.items()}, rounds, patience=1e9)
    seconds = {name: t["cpu_seconds"] for name, t in times.items()}
    if not all(p.isfinite().all() for p in params):
        raise RuntimeError("a parameter is no longer finite, so the times are those of something else")
    rows: list[dict[str, object]] = []
    for name, candidate in candidates.items():
        other = candidate.peer if candidate.peer in seconds else None
        rows.append(
            {
                "step": name,
                "milliseconds": 1e3 * seconds[name],
                "time / fused AdamW": seconds[name] / seconds[FUSED],
                "time / foreach AdamW": seconds[name] / seconds[FOREACH],
                "time / pytorch_optimizer": seconds[name] / seconds[other] if other else "",
                "state bytes / parameter": state_bytes(candidate.optimizer, tensors * entries),
                "first call, s": candidate.first_seconds or "",
                "rounds": times[name]["rounds"],
            }
        )
    return rows


def main() -> None:
    """Measure and write bench/results/optimizer_steps.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 tensors and 3 rounds, nothing written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # all optimizers share the code of the function that wraps their steps, where compiled versions are counted
    torch._dynamo.config.recompile_limit = 64
    # what an earlier run left would make first calls look quick
    torch._inductor.config.force_disable_caches = True
    tensors, rounds = (4, 3) if arguments.quick else (100, 9)
    rows = compare(tensors, 250_000, rounds)
    if arguments.quick:
        print(table(rows))
        return
    summary = {
        f"{row['step']}: time / {to}": row[f"time / {to}"]
        for row in rows
        for to in ("fused AdamW", "foreach AdamW", "pytorch_optimizer")
        if str(row["step"]).split(",")[0] in OURS and row[f"time / {to}"] != ""
    }
    settings = {"tensors": tensors, "entries": 250_000, "dtype": "float32", "rounds": rounds, "threads": 1}
    write_results("optimizer_steps", rows=rows, summary=summary, settings=settings)


if __name__ == "__main__":
    main()
