"""Trace estimators against exact traces and the variance that theory gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.probes.curvature_matrix import CurvatureMatrix
from assay.probes.hessian_trace import HessianTrace, hutch_plus_plus, hutchinson
from assay.probes.view import View


def _symmetric(P: int) -> torch.Tensor:
    A = torch.randn(P, P, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return A + A.T + torch.diag(torch.linspace(0, 5, P, dtype=torch.float64))


def test_hutchinson_has_the_mean_and_variance_of_theory() -> None:
    """Signs would not be signs: the variance of v^T A v is 2 sum over i != j of a_ij^2 for them, more for Gaussians."""
    A = _symmetric(12)
    found = hutchinson(A, 20_000, parts=[slice(0, 12), slice(3, 7)])
    for column, exact, block in zip(found.T, (A, A[3:7, 3:7]), (A, A[3:7]), strict=True):
        off = block.square().sum() - A.diagonal()[: len(block) if block is A else 0].square().sum()
        assert abs(column.mean() - exact.trace()) < 4 * column.std() / math.sqrt(20_000)
        if block is A:
            assert column.var().item() == pytest.approx(2 * off.item(), rel=0.05)


def test_hutch_plus_plus_is_exact_on_low_rank_and_better_on_decay() -> None:
    """The subspace would be wrong (not exact at rank m/3), or its trace counted twice."""
    Q = torch.linalg.qr(_symmetric(60)).Q
    low = Q[:, :4] * torch.tensor([5.0, 3.0, 2.0, -1.0], dtype=torch.float64) @ Q[:, :4].T
    assert hutch_plus_plus(low, 12).value == pytest.approx(9.0, abs=1e-10)
    decaying = Q * (0.4 ** torch.arange(60, dtype=torch.float64)) @ Q.T
    exact = decaying.trace().item()
    estimates = [(hutch_plus_plus(decaying, 24, seed=s), hutchinson(decaying, 24, seed=s).mean()) for s in range(30)]
    squares = torch.tensor([[(ours.value - exact) ** 2, (plain - exact) ** 2] for ours, plain in estimates]).mean(0)
    assert squares[0] < squares[1] / 10


def _view(samples: int = 20) -> tuple[View, list[tuple[torch.Tensor, torch.Tensor]]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        return View(model), [(torch.randn(samples, 5), torch.arange(samples) % 3)]


def test_layers_have_the_traces_of_their_blocks() -> None:
    """A layer's trace would be another's, or its error would not cover the truth."""
    view, data = _view()
    values = HessianTrace(draws=200).measure(view, data)
    for suffix, names in (("", None), ("/0", "0"), ("/2", "2")):
        exact = CurvatureMatrix(view, None, data, parameters=names).dense().trace().item()
        error = values[f"hessian_trace_error{suffix}"]
        assert 0 < error < 0.2 * abs(exact) and abs(values[f"hessian_trace{suffix}"] - exact) < 4 * error
    assert values["hessian_trace"] == pytest.approx(values["hessian_trace/0"] + values["hessian_trace/2"])
    ggn = HessianTrace(60, "ggn", method="hutch++").measure(view, data)
    exact = CurvatureMatrix(view, None, data, matrix="ggn").dense().trace().item()
    assert ggn.keys() == {"ggn_trace", "ggn_trace_error"} and ggn["ggn_trace"] == pytest.approx(exact, rel=0.02)


def test_a_broken_network_is_skipped_with_its_reason() -> None:
    """A NaN weight would give NaN without a word."""
    view, data = _view()
    with torch.no_grad():
        view.model[0].weight[0, 0] = math.inf
    probe = HessianTrace(draws=2)
    values = probe.measure(view, data)
    assert all(math.isnan(v) and "finite" in probe.skipped[k] for k, v in values.items())


def test_bad_arguments_are_refused() -> None:
    """Too few draws would give an error of NaN."""
    for make in (lambda: HessianTrace(1), lambda: HessianTrace(5, method="hutch++"), lambda: HessianTrace(method="x")):  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            make()
    with pytest.raises(InvalidInput):
        hutch_plus_plus(torch.eye(3), 2)
