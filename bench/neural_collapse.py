"""NC1 of features in memory, side by side: Assay's two ways, three loops over classes and a package, on one thread.

All candidates measure the same float32 features and must agree on NC1 to 1e-4. The loops and the package compute NC1
only; Assay's candidates compute NC1, NC2 and NC3, and "with a head" NC4 too. Which loop is the baseline decides what
"times slower" means, so all are given: our own with a matrix product per class, in float64 (in which Assay accumulates)
and in float32, and one with outer products, as the papers' published code forms the scatter (a hundred (d, d) products
at a time, summed). The package is rhubarbwu/neural-collapse where it is importable; it has no loop over classes but two
passes in batches. "far from collapse" are features whose nearest class mean a residual's length does not tell.
Memory is what tensors take at their highest beyond the features, from the profiler's allocation trace; and the resident
high-water mark of a fresh, warmed-up process.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from _measure import in_fresh_process, interleaved, peak_memory, write_results
from assay.probes.collapse_in_memory import measure_collapse
from assay.probes.neural_collapse import NeuralCollapse

FAR = "assay, in memory, far from collapse"


def settings(samples: int, width: int, classes: int, spread: float = 0.3) -> tuple[Tensor, Tensor, nn.Linear]:
    """Return features about random class means, labels and a head."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(classes, (samples,), generator=generator)
    means = 2 * torch.randn(classes, width, generator=generator) + 1
    features = means[targets] + spread * torch.randn(samples, width, generator=generator)
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


def package_is_there() -> bool:
    """Import rhubarbwu/neural-collapse, whose module has the name of this script, if it is installed."""
    here = Path(__file__).parent.resolve()
    spec = PathFinder.find_spec("neural_collapse", [path for path in sys.path if Path(path).resolve() != here])
    if spec is None or spec.loader is None:
        return False
    module = importlib.util.module_from_spec(spec)
    sys.modules["neural_collapse"] = module
    spec.loader.exec_module(module)
    return True


def package(features: Tensor, targets: Tensor, classes: int) -> float:
    """rhubarbwu/neural-collapse, in float32 as it is used: a pass for the means, a pass for the covariance."""
    accumulate, measure = (importlib.import_module(f"neural_collapse.{name}") for name in ("accumulate", "measure"))
    batches = list(zip(features.split(512), targets.split(512), strict=True))
    means = accumulate.MeanAccumulator(classes, features.shape[1])
    covariance = accumulate.CovarAccumulator(classes, features.shape[1])
    for h, y in batches:
        means.accumulate(h, y)
    M, average = means.compute()
    for h, y in batches:
        covariance.accumulate(h, y, M)
    return measure.covariance_ratio(covariance.compute(), M, average)


def candidates(samples: int, width: int, classes: int) -> dict[str, Callable[[], float]]:
    """Return what is compared, by name."""
    h, y, head = settings(samples, width, classes)
    far = settings(samples, width, classes, spread=6.0)[0]
    compared = {
        "assay, in memory": lambda: measure_collapse(h, y, num_classes=classes)["nc1"],
        "assay, in memory, with a head": lambda: measure_collapse(h, y, head=head)["nc1"],
        FAR: lambda: measure_collapse(far, y, num_classes=classes)["nc1"],
        "assay, streaming": functools.partial(streamed, h, y, classes),
        "loop over classes, float64": functools.partial(class_loop, h, y, classes),
        "loop over classes, float32": functools.partial(class_loop, h, y, classes, torch.float32),
        "loop over classes, outer products": functools.partial(outer_products, h, y, classes),
    }
    if package_is_there():
        compared["neural-collapse package"] = functools.partial(package, h, y, classes)
    return compared


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
        assert name == FAR or abs(value / values["loop over classes, float64"] - 1) < 1e-4, f"{name}: NC1 {value}"
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
    summary = {f"{name}: times slower": t["cpu_seconds"] / ours for name, t in times.items() if "assay" not in name}
    summary["assay, in memory: share of the features"] = rows[0]["share_of_features"]
    named = dict(zip(("samples", "width", "classes"), sizes, strict=True))
    write_results("neural_collapse", rows=rows, summary=summary, settings={**named, "rounds": rounds, "threads": 1})


if __name__ == "__main__":
    main()
