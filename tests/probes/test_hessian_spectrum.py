"""The spectrum's numbers against the dense matrix, its groups, and what it refuses to count."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.probes.curvature_matrix import CurvatureMatrix
from assay.probes.hessian_spectrum import HessianSpectrum
from assay.probes.outlier_count import count_above, count_before_gap
from assay.probes.view import View


def _view() -> tuple[View, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A network that has fitted three clusters, so that its spectrum has outliers."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.randn(90, 8, generator=generator) + 3 * torch.eye(3, 8)[y]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return View(model), list(zip(x.split(32), y.split(32), strict=True))


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_numbers_are_those_of_the_dense_spectrum(matrix: str) -> None:
    """Edges, moments, share or counts would be of something else than the eigenvalues."""
    view, data = _view()
    probe = HessianSpectrum(matrix, steps=100, draws=12, groups=["2"], dtype=torch.float64)  # type: ignore[arg-type]
    values = probe.measure(view, data)
    for suffix, names in (("", None), ("/2", "2")):
        dense = CurvatureMatrix(view, None, data, matrix=matrix, parameters=names, dtype=torch.float64).dense()  # type: ignore[arg-type]
        exact = torch.linalg.eigvalsh(dense)
        own = {key: v for key, v in values.items() if key.partition("/")[2] == suffix[1:]}
        found = {key.removeprefix(f"{matrix}_").removesuffix(suffix): v for key, v in own.items()}
        assert found["max"] == pytest.approx(exact[-1].item(), rel=1e-6)
        assert found["min"] == pytest.approx(exact[0].item(), abs=1e-6)
        for name, truth in (("mean", exact.mean()), ("mean_square", exact.square().mean())):
            assert abs(found[name] - truth) < 4 * found[f"{name}_error"]
        share = (exact.abs() < 1e-3 * exact[-1]).double().mean()
        assert abs(found["bulk_share"] - share) <= 4 * found["bulk_share_error"] + 1e-9
        if suffix == "":
            assert found["outliers"] == count_above(exact)
            assert found["gap"] == count_before_gap(exact, 9)
    assert set(probe.spectra) == {"", "2"} and not probe.skipped
    assert len(probe.figure().axes) == 2


def test_nothing_is_counted_before_it_has_converged_or_where_copies_may_be() -> None:
    """Ritz values on their way, or ghosts, would be counted as outliers."""
    view, data = _view()
    for options, why in (({"steps": 3}, "steps"), ({"steps": 90, "reorthogonalize": False}, "copies")):
        probe = HessianSpectrum(**options)  # type: ignore[arg-type]
        values = probe.measure(view, data)
        assert math.isnan(values["hessian_outliers"]) and why in probe.skipped["hessian_outliers"]
        assert math.isfinite(values["hessian_max"]) and "two draws" in probe.skipped["hessian_mean_error"]


def test_vectors_that_do_not_fit_are_said_and_not_made() -> None:
    """A large network's basis would fill the memory that training needs, or end training with an error."""
    view, data = _view()
    probe = HessianSpectrum(steps=90, memory=90 * 147 * 4 - 1)
    values = probe.measure(view, data)
    assert all(math.isnan(v) and "memory" in probe.skipped[k] for k, v in values.items())


def test_a_broken_network_is_skipped_with_its_reason() -> None:
    """Training that diverged would be ended by the probe, or NaN would come without a word."""
    view, data = _view()
    with torch.no_grad():
        view.model[2].bias[0] = math.nan
    probe = HessianSpectrum(steps=4, groups="layers")
    values = probe.measure(view, data)
    assert len(values) == 30 and all(math.isnan(v) and "finite" in probe.skipped[k] for k, v in values.items())
