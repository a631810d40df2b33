"""Sharpness against dense eigenvalues, and what it says when it can't tell."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes.curvature_matrix import CurvatureMatrix
from assay.probes.sharpness import Sharpness
from assay.probes.view import View


def _model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


DATA = [(torch.randn(24, 5, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 3)]


def test_values_are_those_of_the_dense_matrix_and_its_blocks() -> None:
    """A layer's sharpness would be the network's, or the second eigenvalue the first."""
    view = View(_model())
    probe = Sharpness(k=3, groups="layers")
    values = probe.measure(view, DATA)
    for suffix, names in (("", None), ("/0", "0"), ("/2", "2")):
        dense = CurvatureMatrix(view, None, DATA, parameters=names, dtype=torch.float64).dense()
        exact = torch.linalg.eigvalsh(dense)
        exact = exact[exact.abs().argsort(descending=True)]
        for i, name in enumerate(("sharpness", "sharpness_2", "sharpness_3")):
            assert values[f"{name}{suffix}"] == pytest.approx(exact[i].item(), rel=1e-4)
    assert set(probe.pairs) == {"", "0", "2"} and probe.pairs["0"].vectors.shape == (24, 3)
    assert len(values) == 9 and not probe.skipped


def test_what_did_not_converge_is_nan_with_the_way_out() -> None:
    """An eigenvalue that has not converged would be shown as the sharpness."""
    probe = Sharpness(k=2, max_steps=2, tolerance=1e-6)
    values = probe.measure(View(_model()), DATA)
    assert math.isnan(values["sharpness_2"]) and "max_steps" in probe.skipped["sharpness_2"]


def test_more_values_than_parameters_are_skipped() -> None:
    """The missing ones would be zeros, or an error would end training."""
    probe = Sharpness(k=4)
    values = probe.measure(View(nn.Linear(1, 2, bias=False)), [(torch.ones(3, 1), torch.tensor([0, 1, 0]))])
    assert values["sharpness"] > 0 and "2 parameters" in probe.skipped["sharpness_4"]


def test_a_rule_that_predicts_otherwise_is_skipped() -> None:
    """The curvature of a forward pass that the network does not use would be shown."""

    class Other:
        def predict(self, x: Any) -> Tensor:
            return torch.ones(len(x), 3)

        def features(self, x: Any) -> dict[str, Tensor]:
            return {"x": x}

        def head(self) -> None:
            return None

    probe = Sharpness()
    values = probe.measure(View(_model(), rule=Other()), DATA)
    assert math.isnan(values["sharpness"]) and "rule" in probe.skipped["sharpness"]


def test_a_loss_that_is_not_finite_is_skipped() -> None:
    """Finite weights with overflowing scores would end in an error from inside Lanczos."""
    probe = Sharpness(matrix="ggn")
    values = probe.measure(View(_model()), [(DATA[0][0] * math.inf, DATA[0][1])])
    assert math.isnan(values["ggn_sharpness"]) and "loss" in probe.skipped["ggn_sharpness"]


def test_the_memory_limit_is_kept_and_said() -> None:
    """A large network's basis would fill the memory that training needs."""
    size = 39 * 4  # of one vector
    probe = Sharpness(memory=12 * size, tolerance=1e-9)
    values = probe.measure(View(_model()), DATA)
    assert math.isnan(values["sharpness"]) and "memory" in probe.skipped["sharpness"]
    probe = Sharpness(memory=size - 1)
    values = probe.measure(View(_model()), DATA)
    assert math.isnan(values["sharpness"]) and "memory" in probe.skipped["sharpness"]


def test_too_little_memory_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of 50 million parameters would be differentiated twice for vectors that cannot converge."""
    monkeypatch.setattr("assay.probes.sharpness.CurvatureMatrix", None)  # would raise if it were called
    probe = Sharpness(memory=9 * 39 * 4)
    assert math.isnan(probe.measure(View(_model()), DATA)["sharpness"])
    assert "9 vectors only" in probe.skipped["sharpness"]


def test_bad_arguments_are_refused() -> None:
    """No eigenvalue at all would be asked for."""
    for options in ({"k": 0}, {"k": 5, "max_steps": 4}):
        with pytest.raises(InvalidInput):
            Sharpness(**options)  # type: ignore[arg-type]
