"""The leave-one-out k-nearest-neighbour loss against brute force, forward and backward, in one run, one thread.

Two settings: a batch of 128 against a bank of 10,000 (gradients by the batch), and the leave-one-out loss of all 10,000
samples (gradients on both sides). Brute force forms the matrix of all similarities under autograd; "sort" orders every
row, "top-k" uses `torch.topk`, both then mask the matrix; "top-k, gathered" goes on with the chosen values only, which
is the best that a few lines do. scikit-learn's brute-force search is timed without a loss. Errors are those of loss and
gradient against brute force in float64, formed in blocks of rows. Memory is what tensors take at their highest beyond
the inputs, from the profiler's allocation trace, and the resident high-water mark of a fresh, warmed-up process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from _measure import in_fresh_process, interleaved, peak_memory, write_results
from assay.losses.leave_one_out import leave_one_out_knn_loss
from neural_collapse import tensor_bytes

K, TAU = 20, 0.1
Result = tuple[Tensor, Tensor]


def features(samples: int, width: int) -> tuple[Tensor, Tensor]:
    """Return unit features about 100 means, and labels of ten classes with ten means each."""
    generator = torch.Generator().manual_seed(0)
    cluster = torch.randint(100, (samples,), generator=generator)
    means = torch.randn(100, width, generator=generator)
    z = means[cluster] + 1.5 * torch.randn(samples, width, generator=generator)
    return F.normalize(z, dim=1), cluster % 10


def assay(z: Tensor, y: Tensor, queries: slice, both: bool) -> Result:
    """Ours; a query without a neighbour of its class has loss 0, as in the others."""
    ids = torch.arange(len(z))
    q = z[queries].clone().requires_grad_()
    keys = q if both else z
    options = {"temperature": TAU, "on_empty": "skip", "reduction": "sum"}
    loss = leave_one_out_knn_loss(q, y[queries], keys, y, K, query_ids=ids[queries], key_ids=ids, **options)
    loss.backward()
    return loss.detach(), q.grad


def share(exponents: Tensor, same: Tensor) -> Tensor:
    """Return the sum of the losses of rows that have a neighbour of their class."""
    some = same.any(dim=1)
    exponents, same = exponents[some], same[some]
    return (exponents.logsumexp(dim=1) - exponents.masked_fill(~same, -torch.inf).logsumexp(dim=1)).sum()


def brute(z: Tensor, y: Tensor, queries: slice, both: bool, way: str) -> Result:
    """The matrix of all similarities, the k largest of a row by sorting or top-k, the rest masked or left behind."""
    q = z[queries].clone().requires_grad_()
    exponents = q @ (q if both else z).T / TAU
    own = torch.arange(len(z))[queries, None] == torch.arange(len(z))
    exponents = exponents.masked_fill(own, -torch.inf)
    if way == "sort":
        chosen = exponents.detach().argsort(dim=1, descending=True)[:, :K]
    else:
        chosen = exponents.detach().topk(K, dim=1).indices
    if way == "gathered":
        loss = share(exponents.gather(1, chosen), y[chosen] == y[queries, None])
    else:
        near = torch.zeros_like(own).scatter(1, chosen, True)
        loss = share(exponents.masked_fill(~near, -torch.inf), near & (y == y[queries, None]))
    loss.backward()
    return loss.detach(), q.grad


def exact(z: Tensor, y: Tensor, queries: slice, both: bool) -> Result:
    """Brute force in float64, 200 rows at a time."""
    z = z.double().requires_grad_()
    ids, total = torch.arange(len(z)), torch.zeros((), dtype=torch.float64)
    for rows in ids[queries].split(200):
        keys = z if both else z.detach()
        exponents = (z[rows] @ keys.T / TAU).masked_fill(rows[:, None] == ids, -torch.inf)
        chosen = exponents.detach().argsort(dim=1, descending=True)[:, :K]
        loss = share(exponents.gather(1, chosen), y[chosen] == y[rows, None])
        loss.backward()
        total += loss.detach()
    return total, z.grad[queries]


def candidates(samples: int, width: int, setting: str) -> dict[str, Callable[[], Result]]:
    """Return what is compared in a setting, by name; the first is the baseline."""
    z, y = features(samples, width)
    queries, both = (slice(0, 128), False) if setting == "batch" else (slice(None), True)
    return {
        "assay": lambda: assay(z, y, queries, both),
        "brute force, sort": lambda: brute(z, y, queries, both, "sort"),
        "brute force, top-k": lambda: brute(z, y, queries, both, "top-k"),
        "brute force, top-k, gathered": lambda: brute(z, y, queries, both, "gathered"),
    }


def search(samples: int, width: int, setting: str) -> Callable[[], object]:
    """Return scikit-learn's search alone."""
    z, _ = features(samples, width)
    found = NearestNeighbors(n_neighbors=K + 1, algorithm="brute").fit(z.numpy())
    queries = z[:128] if setting == "batch" else z
    return lambda: found.kneighbors(queries.numpy())


def errors(found: Result, expected: Result) -> dict[str, float]:
    """Return the relative errors of the loss and, in norm, of the gradient."""
    loss, gradient = (a.double() - e for a, e in zip(found, expected, strict=True))
    return {
        "loss_error": (loss / expected[0]).abs().item(),
        "gradient_error": (gradient.norm() / expected[1].norm()).item(),
    }


def memory(samples: int, width: int, setting: str, name: str) -> None:
    """Print one candidate's memory as JSON; meant for a fresh process."""
    candidates(200, width, setting)[name]()
    call = candidates(samples, width, setting)[name]
    resident = peak_memory(call)
    print(json.dumps({"tensors": tensor_bytes(call), "resident": resident}))


def main() -> None:
    """Measure and write bench/results/look.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", nargs=4, metavar=("SAMPLES", "WIDTH", "SETTING", "NAME"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        samples, width, setting, name = arguments.memory
        return memory(int(samples), int(width), setting, name)
    samples, width, rounds = (1000, 64, 2) if arguments.quick else (10_000, 64, 5)
    rows, summary = [], {}
    for setting in ("batch", "all"):
        compared = candidates(samples, width, setting)
        z, y = features(samples, width)
        expected = exact(z, y, slice(0, 128) if setting == "batch" else slice(None), setting == "all")
        wrong = {name: errors(call(), expected) for name, call in compared.items()}
        times = interleaved(compared | {"scikit-learn, search only": search(samples, width, setting)}, rounds)
        used = {name: in_fresh_process(sys.argv[0], "--memory", samples, width, setting, name) for name in compared}
        for name, time in times.items():
            bytes_used = {f"{kind}_bytes": value for kind, value in used.get(name, {}).items()}
            rows.append({"setting": setting, "way": name, **time, **bytes_used, **wrong.get(name, {})})
        ours = times["assay"]["cpu_seconds"], used["assay"]["tensors"]
        for name in list(compared)[1:]:
            summary[f"{setting}, {name}: times slower"] = times[name]["cpu_seconds"] / ours[0]
            summary[f"{setting}, {name}: times the tensor memory"] = used[name]["tensors"] / ours[1]
    settings = {"samples": samples, "width": width, "k": K, "temperature": TAU, "rounds": rounds, "threads": 1}
    write_results("look", rows=rows, summary=summary, settings=settings)


if __name__ == "__main__":
    main()
