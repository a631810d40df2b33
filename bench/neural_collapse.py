"""NC1 of features in memory, side by side: Assay's two ways and four loops over classes, in one run, one thread.

All candidates measure the same float32 features and must agree on NC1 to 1e-4. The loops compute NC1 only; Assay's
candidates compute NC1, NC2 and NC3, and "with a head" NC4 too. "outer products" is how the papers' published code forms
the scatter (a hundred (d, d) products at a time, summed). Memory is what tensors take at their highest beyond the
features, from the profiler's allocation trace; and the resident high-water mark of a fresh, warmed-up process.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from _measure import in_fresh_process, interleaved, peak_memory, write_results
from assay.probes.collapse_in_memory import measure_collapse
from assay.probes.neural_collapse import NeuralCollapse


def settings(samples: int, width: int, classes: int) -> tuple[Tensor, Tensor, nn.Linear]:
    """Return features about random class means, labels and a head."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(classes, (samples,), generator=generator)
    means = 2 * torch.randn(classes, width, generator=generator) + 1
    features = means[targets] + 0.3 * torch.randn(samples, width, generator=generator)
    return features, targets, nn.Linear(width, classes)


def streamed(features: Tensor, targets: Tensor, classes: int) -> float:
    """One pass in batches of 512, as `assay.Watch` does it."""
    probe = NeuralCollapse(classes, nc4=False)
    for h, y in zip(features.split(512), targets.split(512), strict=True):
        probe.update(h, y)
    return probe.compute()["nc1"]


def class_loop(features: Tensor, targets: Tensor, classes: int, dtype: torch.dtype = torch.float64) -> float:
    """The definition, one class at a time, with a matrix product per class and torch's pseudo-inverse."""
    scatter, means = 0.0, []
    for k in range(classes):
        h = features[targets == k].to(dtype)
        means.append(h.mean(dim=0))
        residual = h - means[-1]
        scatter = scatter + residual.T @ residual
    M = torch.stack(means)
    M = M - M.mean(dim=0)
    inverse = torch.linalg.pinv(M.T @ M / classes, rtol=1e-5)
    return (torch.trace(scatter / len(features) @ inverse) / classes).item()


def outer_products(features: Tensor, targets: Tensor, classes: int) -> float:
    """One class at a time, a hundred outer products (d, d) at a time, and SciPy's pseudo-inverse."""
    scatter, means = 0.0, []
    for k in range(classes):
        h = features[targets == k]
        means.append(h.mean(dim=0))
        for part in (h - means[-1]).split(100):
            scatter = scatter + (part.unsqueeze(2) @ part.unsqueeze(1)).sum(dim=0)
    M = torch.stack(means)
    M = M - M.mean(dim=0)
    inverse = scipy.linalg.pinv((M.T @ M / classes).numpy(), rtol=1e-5)
    return float(np.trace((scatter / len(features)).numpy() @ inverse) / classes)


def candidates(samples: int, width: int, classes: int) -> dict[str, Callable[[], float]]:
    """Return what is compared, by name."""
    h, y, head = settings(samples, width, classes)
    return {
        "assay, in memory": lambda: measure_collapse(h, y, num_classes=classes)["nc1"],
        "assay, in memory, with a head": lambda: measure_collapse(h, y, head=head)["nc1"],
        "assay, streaming": functools.partial(streamed, h, y, classes),
        "loop over classes, float64": functools.partial(class_loop, h, y, classes),
        "loop over classes, float32": functools.partial(class_loop, h, y, classes, torch.float32),
        "loop over classes, outer products": functools.partial(outer_products, h, y, classes),
    }


def tensor_bytes(call: Callable[[], object]) -> int:
    """Return the most bytes that tensors made by a call take at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    current = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def memory(sizes: list[int], name: str) -> None:
    """Print one candidate's memory as JSON; meant for a fresh process."""
    candidates(20 * sizes[2], *sizes[1:])[name]()  # every class has samples
    call = candidates(*sizes)[name]
    resident = peak_memory(call)
    print(json.dumps({"tensors": tensor_bytes(call), "resident": resident}))


def main() -> None:
    """Measure and write bench/results/neural_collapse.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", nargs=4, metavar=("SAMPLES", "WIDTH", "CLASSES", "NAME"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        return memory([int(size) for size in arguments.memory[:3]], arguments.memory[3])
    sizes, rounds = ([1000, 64, 10], 2) if arguments.quick else ([10_000, 512, 100], 7)
    compared = candidates(*sizes)
    values = {name: call() for name, call in compared.items()}
    for name, value in values.items():
        assert abs(value / values["loop over classes, float64"] - 1) < 1e-4, f"{name}: NC1 {value}"
    times = interleaved(compared, rounds, patience=1e9)
    features = sizes[0] * sizes[1] * 4
    rows = []
    for name, time in times.items():
        used = in_fresh_process(sys.argv[0], "--memory", *sizes, name)
        rows.append(
            {"way": name, "nc1": values[name], **time}
            | {"tensor_bytes": used["tensors"], "share_of_features": used["tensors"] / features}
            | {"resident_bytes": used["resident"]}
        )
    ours = times["assay, in memory"]["cpu_seconds"]
    summary = {f"{name}: times slower": t["cpu_seconds"] / ours for name, t in times.items() if "loop" in name}
    named = dict(zip(("samples", "width", "classes"), sizes, strict=True))
    write_results("neural_collapse", rows=rows, summary=summary, settings={**named, "rounds": rounds, "threads": 1})


if __name__ == "__main__":
    main()
