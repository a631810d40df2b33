"""Spectrum and power-law exponent of 1024 x 1024 layers, side by side with WeightWatcher and powerlaw; one thread.

All candidates get the same float32 weights (Gaussian, columns on a power-law scale). WeightWatcher analyses them
as a model, at its defaults and without its randomised twin; "svdvals + powerlaw" fits torch's singular values; Assay's
probe measures the same model and so returns its ranks and its bulk too. Exponents must agree with WeightWatcher's to
1e-6 in float64 and to 5e-4 in float32. The fit's share is that of `mle_ks_alpha` on the eigenvalues found.

Needs: pip install weightwatcher==0.7.7 powerlaw==2.0.0
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from _measure import interleaved, write_results
from assay.probes.power_law_tail import mle_ks_alpha
from assay.probes.singular_values import squared_singular_values
from assay.probes.view import View
from assay.probes.weight_spectrum import WeightSpectrum

Fits = tuple[np.ndarray, np.ndarray]  # exponents and distances, one per layer


def matrices(layers: int, size: int) -> list[Tensor]:
    """Return weights with heavier and heavier tails."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, size + 1, dtype=torch.float32)
    return [
        torch.randn(size, size, generator=generator) / size**0.5 * scale ** (-0.25 - 0.02 * i) for i in range(layers)
    ]


def network(weights: list[Tensor]) -> nn.Sequential:
    """Return a model with these weights."""
    model = nn.Sequential(*(nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights))
    for layer, weight in zip(model, weights, strict=True):
        layer.weight.data = weight
    return model


def weightwatcher(model: nn.Module, **options: bool) -> Fits:
    """Analyse with WeightWatcher, its chatter silenced."""
    with contextlib.redirect_stdout(io.StringIO()):
        import weightwatcher as ww

        logging.getLogger("weightwatcher").setLevel(logging.ERROR)
        details = ww.WeightWatcher(model=model).analyze(**options)
    return details["alpha"].to_numpy(), details["D"].to_numpy()


def powerlaw(weights: list[Tensor]) -> Fits:
    """Fit torch's singular values with powerlaw."""
    import powerlaw as package

    fits = [
        package.Fit(torch.linalg.svdvals(w.double()).square().numpy(), verbose=False, xmin_distribution="power_law")
        for w in weights
    ]
    return np.array([f.alpha for f in fits]), np.array([f.D for f in fits])


def assay(model: nn.Module, dtype: torch.dtype) -> Fits:
    """Measure with the probe."""
    probe = WeightSpectrum(dtype=dtype)
    values = probe.measure(View(model), [])
    names = list(probe.spectra)
    expected = f"gram-{str(dtype).removeprefix('torch.')}"
    assert all(s.method == expected for s in probe.spectra.values()), f"not measured by {expected}"
    return tuple(np.array([values[f"weight_{key}/{n}"] for n in names]) for key in ("alpha_ks", "ks_distance"))  # type: ignore[return-value]


def fit_share(weights: list[Tensor], dtype: torch.dtype, total: float) -> float:
    """Return the CPU time of the fits alone as a share of a total."""
    spectra = [squared_singular_values(w, dtype=dtype).double() for w in weights]
    spectra = [s[s > 1e-9 * s[-1]] for s in spectra]
    times = []
    for _ in range(5):
        start = time.process_time()
        for spectrum in spectra:
            mle_ks_alpha(spectrum)
        times.append(time.process_time() - start)
    return sorted(times)[2] / total


def main() -> None:
    """Measure and write bench/results/weight_spectrum.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    layers, size, rounds = (2, 256, 2) if parser.parse_args().quick else (6, 1024, 5)
    torch.set_num_threads(1)
    weights = matrices(layers, size)
    model = network(weights)
    plain = {"plot": False, "randomize": False}
    candidates: dict[str, Callable[[], Fits]] = {
        "weightwatcher": lambda: weightwatcher(model),
        "weightwatcher, no randomised twin": lambda: weightwatcher(model, **plain),
        "svdvals + powerlaw": lambda: powerlaw(weights),
        "assay, float64": lambda: assay(model, torch.float64),
        "assay, float32": lambda: assay(model, torch.float32),
    }
    fits = {name: call() for name, call in candidates.items()}
    alpha, distance = fits["weightwatcher"]
    for name, tolerance in (("assay, float64", 1e-6), ("assay, float32", 5e-4)):
        for found, wanted in zip(fits[name], (alpha, distance), strict=True):
            assert np.abs(found / wanted - 1).max() < tolerance, f"{name}: {found} instead of {wanted}"
    times = interleaved(candidates, rounds, patience=1e9)
    rows = [
        {"way": name, "cpu_seconds_per_matrix": t["cpu_seconds"] / layers, **t}
        | {"mean_alpha": fits[name][0].mean(), "mean_distance": fits[name][1].mean()}
        | {"largest_difference_of_alpha": np.abs(fits[name][0] / alpha - 1).max()}
        for name, t in times.items()
    ]
    fastest = min(times[name]["cpu_seconds"] for name in ("weightwatcher", "weightwatcher, no randomised twin"))
    summary = {}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        total = times[f"assay, {name}"]["cpu_seconds"]
        summary[f"{name}: times faster than WeightWatcher"] = fastest / total
        summary[f"{name}: the fit's share of the time"] = fit_share(weights, dtype, total)
    settings = {"layers": layers, "size": size, "rounds": rounds, "threads": 1}
    write_results("weight_spectrum", rows=rows, summary=summary, settings=settings)


if __name__ == "__main__":
    main()
