"""Hessian products, spectral density and top eigenvalues beside PyHessian, hessian-eigenthings and curvlinops.

Agreement comes first: on a network of 508 parameters, every library's ten largest eigenvalues and the first two moments
of its density against a dense Hessian in float64. Then CPU time with one thread on an MLP (109,386 parameters) and a
CNN (9,098), 1000 samples, float32: one product, the density from 10 random vectors x 60 steps, the ten largest
eigenvalues. "share of products" is the part of Assay's density that the products alone would take.

The peers treat random vectors one after another, so their density is timed for fewer vectors and scaled up ("vectors
timed"); Assay's is timed in full. PyHessian's density calls `torch.eig`, which is gone; a stand-in takes its place. Its
ten largest eigenvalues (power iteration) are left out on the CNN, where they take minutes. Install the peers with
`pip install --no-deps pyhessian==0.1 hessian-eigenthings==1.0.0a5 curvlinops-for-pytorch==3.0.1 backpack-for-pytorch
einconv einops linear_operator opt_einsum unfoldNd jaxtyping`; one that is absent is left out.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _measure import interleaved, write_results
from assay.probes.curvature_matrix import CurvatureMatrix
from assay.probes.eigenpairs import top_eigenpairs
from assay.probes.spectral_density import estimate_spectrum

Network = tuple[nn.Module, Tensor, Tensor]
TARGET = "density and top-10 on the CNN: at least 2 times faster than the fastest peer, aiming at 3"


def network(kind: str, samples: int) -> Network:
    """Return a network after 30 steps on a planted linear rule, so that its spectrum has outliers."""
    torch.manual_seed(0)
    if kind == "tiny":
        layers: tuple[nn.Module, ...] = (nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))
    elif kind == "mlp":
        layers = (nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    else:
        first = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        second = (nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        layers = (*first, *second, nn.Flatten(), nn.Linear(784, 10))
    model = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, *((20,) if kind == "tiny" else (1, 28, 28)), generator=generator)
    y = (x.flatten(1) @ torch.randn(x[0].numel(), 4 if kind == "tiny" else 10, generator=generator)).argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(30):
        rows = slice(100 * step % samples, 100 * step % samples + 100)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, x, y


@dataclass
class Library:
    """What one library offers: a product, the density's first two moments from r vectors and m steps, the top k."""

    product: Callable[[], object]
    density: Callable[[int, int], tuple[float, float]]
    top: Callable[[int], list[float]]


def assay_library(model: nn.Module, x: Tensor, y: Tensor) -> Library:
    """Assay, the linearisation counted where a user would pay it: in the density and the top eigenvalues."""
    make = functools.partial(CurvatureMatrix, model, F.cross_entropy, (x, y))
    matrix = make()
    rows = torch.randn(1, matrix.shape[0])

    def density(draws: int, steps: int) -> tuple[float, float]:
        found = estimate_spectrum(make(), draws=draws, steps=steps)
        return found.moment(1).value, found.moment(2).value

    return Library(lambda: matrix.times_rows(rows), density, lambda k: top_eigenpairs(make(), k).values.tolist())


def pyhessian_library(model: nn.Module, x: Tensor, y: Tensor) -> Library:
    """PyHessian 0.1, with a stand-in for `torch.eig`."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    def eig(matrix: Tensor, eigenvectors: bool = False) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

    torch.eig = eig  # type: ignore[attr-defined, assignment]

    def make() -> Any:
        return hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)

    def density(draws: int, steps: int) -> tuple[float, float]:
        made = make()
        nodes, weights = (torch.tensor(part) for part in made.density(iter=steps, n_v=draws))
        model.zero_grad(set_to_none=True)  # breaks the cycle that its graph leaves
        return (nodes * weights).sum(1).mean().item(), (nodes**2 * weights).sum(1).mean().item()

    def top(k: int) -> list[float]:
        values = make().eigenvalues(maxIter=100, tol=1e-3, top_n=k)[0]
        model.zero_grad(set_to_none=True)
        return values

    held = make()
    vector = [torch.randn_like(p) for p in held.params]
    return Library(lambda: hessian_vector_product(held.gradsH, held.params, vector), density, top)


def eigenthings_library(model: nn.Module, x: Tensor, y: Tensor) -> Library:
    """hessian-eigenthings, the pre-release that runs with this torch."""
    import hessian_eigenthings as he

    operator = he.HessianOperator(model, [(x, y)], he.supervised_loss(F.cross_entropy))
    vector = torch.randn(operator.size)

    def density(draws: int, steps: int) -> tuple[float, float]:
        found = he.spectral_density(operator, num_runs=draws, lanczos_steps=steps, seed=0, num_grid_points=1024)
        nodes, weights = (torch.as_tensor(t, dtype=torch.float64) for t in (found.raw_eigenvalues, found.raw_weights))
        weights = weights / weights.sum(-1, keepdim=True)
        return (nodes * weights).sum(-1).mean().item(), (nodes**2 * weights).sum(-1).mean().item()

    def top(k: int) -> list[float]:
        return he.lanczos(operator, k=k, max_iter=60, reorthogonalize=True, seed=0, which="LM").eigenvalues.tolist()

    return Library(lambda: operator.matvec(vector), density, top)


def curvlinops_library(model: nn.Module, x: Tensor, y: Tensor) -> Library:
    """curvlinops; its density is smoothed by a wide kernel before moments can be taken."""
    import curvlinops
    from scipy.sparse.linalg import eigsh

    parameters = list(model.parameters())
    operator = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False
    )
    vector = torch.randn(operator.shape[1])

    def density(draws: int, steps: int) -> tuple[float, float]:
        grid, values = curvlinops.lanczos_approximate_spectrum(
            operator, steps, num_points=1024, num_repeats=draws, boundaries=(-1.0, 10.0)
        )
        grid, values = (torch.as_tensor(t, dtype=torch.float64) for t in (grid, values))
        weights = values / values.sum()
        return (grid * weights).sum().item(), (grid**2 * weights).sum().item()

    def top(k: int) -> list[float]:
        return eigsh(operator.to_scipy(), k=k, which="LM", tol=1e-3, return_eigenvectors=False).tolist()

    return Library(lambda: operator @ vector, density, top)


MAKERS = {
    "assay": assay_library,
    "PyHessian": pyhessian_library,
    "hessian-eigenthings": eigenthings_library,
    "curvlinops": curvlinops_library,
}


def libraries(made: Network) -> dict[str, Library]:
    """Return the libraries that are installed, by name."""
    found = {}
    for name, maker in MAKERS.items():
        try:
            found[name] = maker(*made)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return found


def by_magnitude(values: list[float]) -> Tensor:
    """Return eigenvalues by falling magnitude."""
    found = torch.tensor(values, dtype=torch.float64)
    return found[found.abs().argsort(descending=True)]


def agreement(samples: int) -> list[dict[str, Any]]:
    """Compare each library with a dense Hessian; Assay must be within 1e-4 of its ten largest eigenvalues."""
    model, x, y = network("tiny", samples)
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([s.numel() for s in shapes.values()])
        values = {name: part.view(s) for (name, s), part in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, values, (x.double(),)), y)

    flat = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    exact = torch.linalg.eigvalsh(torch.func.hessian(loss)(flat))
    largest, moments = by_magnitude(exact.tolist())[:10], (exact.mean().item(), exact.square().mean().item())
    rows = []
    for name, library in libraries((model, x, y)).items():
        error = (by_magnitude(library.top(10)) / largest - 1).abs().max().item()
        torch.manual_seed(0)
        off = [found / moment - 1 for found, moment in zip(library.density(10, 60), moments, strict=True)]
        rows.append({"network": "tiny", "quantity": "agreement", "library": name, "top-10 off by": error})
        rows[-1] |= {"mean off by": off[0], "mean square off by": off[1]}
        assert name != "assay" or error < 1e-4, f"assay's eigenvalues are off by {error}"
    return rows


def timed(call: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median CPU and wall seconds of a call."""
    samples = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        samples.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu_times, wall_times = zip(*samples, strict=True)
    return statistics.median(cpu_times), statistics.median(wall_times)


def timings(kind: str, samples: int, draws: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Time every library on one network."""
    made = network(kind, samples)
    found = libraries(made)
    products = interleaved({name: library.product for name, library in found.items()}, 5, patience=1e9)
    rows = [
        {"network": kind, "quantity": "product", "library": name}
        | {"cpu_seconds": t["cpu_seconds"], "seconds": t["seconds"]}
        for name, t in products.items()
    ]
    for name, library in found.items():
        library.density(1, 2)
        vectors = draws if name == "assay" else max(1, draws // (5 if kind == "mlp" else 10))
        cpu, wall = timed(functools.partial(library.density, vectors, steps), rounds)
        rows.append({"network": kind, "quantity": f"density {draws} x {steps}", "library": name})
        scale = draws / vectors
        rows[-1] |= {"cpu_seconds": scale * cpu, "seconds": scale * wall, "vectors timed": vectors}
        if name == "assay":
            rows[-1]["share of products"] = draws * steps * products["assay"]["cpu_seconds"] / cpu
    values: dict[str, Tensor] = {}
    for name, library in found.items():
        if kind == "cnn" and name == "PyHessian":
            continue
        cpu, wall = timed(lambda name=name, top=library.top: values.update({name: by_magnitude(top(10))}), rounds)
        rows.append({"network": kind, "quantity": "top-10", "library": name, "cpu_seconds": cpu, "seconds": wall})
        rows[-1]["top-10 off by"] = (values[name] / values["assay"] - 1).abs().max().item()
    return rows


def fastest_peers(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return, by network and quantity, the fastest peer's time divided by Assay's."""
    ratios = {}
    for row in rows:
        if row["library"] == "assay" and "cpu_seconds" in row:
            same = [r for r in rows if (r["network"], r["quantity"]) == (row["network"], row["quantity"])]
            peers = [r["cpu_seconds"] for r in same if r["library"] != "assay"]
            if peers:
                key = f"{row['network']}, {row['quantity']}: fastest peer / assay"
                ratios[key] = min(peers) / row["cpu_seconds"]
    return ratios


def main() -> None:
    """Measure and write bench/results/curvature.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 samples, 2 x 10 densities, one round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples, draws, steps = (100, 2, 10) if arguments.quick else (1000, 10, 60)
    rows = agreement(samples)
    for kind, rounds in (("mlp", 3), ("cnn", 1)):
        rows += timings(kind, samples, draws, steps, 1 if arguments.quick else rounds)
    settings = {"samples": samples, "draws": draws, "steps": steps, "dtype": "float32", "threads": 1}
    write_results("curvature", rows=rows, summary=fastest_peers(rows) | {"target": TARGET}, settings=settings)


if __name__ == "__main__":
    main()
