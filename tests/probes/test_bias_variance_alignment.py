"""Bias and variance against closed forms, numpy's line and torchmetrics' calibration error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from assay.errors import InvalidInput
from assay.models.ensemble import Ensemble
from assay.models.mlp import MLP
from assay.probes.bias_variance_alignment import BiasVariance, BiasVarianceMetric, bias_variance
from assay.probes.view import View
from assay.watch import Watch

SLOPE = "bias_variance_slope"


def seeded(seed=0):
    """A generator."""
    return torch.Generator().manual_seed(seed)


def members(M=10, B=300, K=4, seed=0):
    """Predictions whose spread differs between samples, and labels that are mostly the favourite."""
    generator = seeded(seed)
    centre = 2 * torch.randn(B, K, generator=generator, dtype=torch.float64)
    noise = torch.randn(M, B, K, generator=generator, dtype=torch.float64)
    targets = torch.where(torch.rand(B, generator=generator) < 0.8, centre.argmax(1), torch.arange(B) % K)
    return (centre + 0.7 * noise).softmax(-1), targets


def filled(h, y, **options):
    """A metric that has seen everything."""
    metric = BiasVarianceMetric(**options)
    metric.update(h, y)
    return metric


@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 1000), st.booleans())
@settings(max_examples=20, deadline=None)
def test_decomposition_and_identity(M, K, seed, debias):
    """Bias, variance, uncertainty and gap would not be one decomposition of the members' error."""
    h, y = members(M, 40, K, seed)
    bias2, variance, _ = bias_variance(h, y, debias=debias)
    error = (h - torch.eye(K, dtype=h.dtype)[y]).square().sum(2).mean(0)
    rest = variance * (0 if debias else 1 / M)  # an unbiased variance is M / (M - 1) of the members' own
    torch.testing.assert_close(bias2 + variance - rest, error, rtol=0, atol=1e-12)
    v = filled(h, y, debias=debias).compute()
    gap = v["variance"] / M * (0 if debias else 1)
    assert v["bias2"] - v["variance"] + gap == pytest.approx(v["uncertainty"] - 2 * v["calibration_gap"], abs=1e-12)


def test_estimates_are_unbiased():
    """Few members would overstate the bias: uniform p on two classes has Bias^2 = 1/2 and Vari = 1/6 exactly."""
    e = torch.empty(4, 200_000, 2, dtype=torch.float64).exponential_(generator=seeded())  # exp of reflected Gumbel
    h, y = e / e.sum(2, keepdim=True), torch.zeros(200_000, dtype=torch.int64)
    bias2, variance, _ = bias_variance(h, y)
    assert bias2.mean().item() == pytest.approx(1 / 2, abs=3e-3)
    assert variance.mean().item() == pytest.approx(1 / 6, abs=1e-3)
    plain = bias_variance(h, y, debias=False).bias2.mean().item()
    assert plain == pytest.approx(1 / 2 + 1 / 6 / 4, abs=3e-3)


def test_one_hot_members_that_are_calibrated_have_bias_equal_to_variance():
    """The generalised disagreement equality, the limit of the paper's theory, would not come out."""
    generator = seeded(3)
    p = torch.randn(20_000, 3, generator=generator, dtype=torch.float64).mul(2).softmax(1)
    draws = torch.multinomial(p, 12, replacement=True, generator=generator)
    h = nn.functional.one_hot(draws.T, 3).double()
    y = torch.multinomial(p, 1, generator=generator)[:, 0]
    v = filled(h, y).compute()
    assert v["uncertainty"] == 0
    assert v["bias2"] == pytest.approx(v["variance"], abs=0.01) and abs(v["calibration_gap"]) < 0.01


@pytest.mark.parametrize("parts", [1, 3])
def test_lines_are_numpys_and_halves_merge(parts):
    """Slope, intercept, R^2 or the share of correct samples would be wrong, or depend on the batches."""
    h, y = members()
    metrics = [filled(a, b) for a, b in zip(h.chunk(parts, 1), y.chunk(parts), strict=True)]
    whole = metrics[0]
    for other in metrics[1:]:
        whole.merge_state(other)
    values = whole.compute()
    found = bias_variance(h, y)
    for ending, chosen in (("", found.correct), ("_wrong", ~found.correct)):
        chosen = chosen & (found.bias2 > 1e-12)
        x, v = found.bias2[chosen].log().numpy(), found.variance[chosen].log().numpy()
        slope, intercept = np.polyfit(x, v, 1)
        assert values[f"{SLOPE}{ending}"] == pytest.approx(slope, rel=1e-9)
        assert values[f"bias_variance_intercept{ending}"] == pytest.approx(intercept, rel=1e-8)
        assert values[f"bias_variance_r2{ending}"] == pytest.approx(np.corrcoef(x, v)[0, 1] ** 2, rel=1e-9)
    right = found.correct
    ratio = (found.variance[right].sum() / found.bias2[right].sum()).item()
    assert values["variance_to_bias"] == pytest.approx(ratio) and values["ensemble_accuracy"] == right.double().mean()
    assert values["dropped"] == (found.bias2 <= 1e-12).double().mean()
    assert whole.histograms.sum().item() == (1 - values["dropped"]) * len(y)


def test_calibration_error_is_torchmetrics():
    """The error in one pass would differ from the usual one, at the edges of bins too."""
    h, y = members(B=500)
    h[:, :9] = nn.functional.one_hot(torch.zeros(9, dtype=torch.int64), 4).double()  # confidence 1
    h[:, 9:12] = torch.tensor([0.6, 0.2, 0.1, 0.1], dtype=torch.float64)  # an edge
    expected = multiclass_calibration_error(h.mean(0), y, 4, n_bins=15, norm="l1")
    assert filled(h, y).compute()["ensemble_calibration_error"] == pytest.approx(float(expected), abs=1e-6)


def test_watch_measures_an_ensemble_as_the_function_does():
    """The probe would read other scores than the members', or the ensemble not be a classifier for other probes."""
    ensemble = Ensemble(lambda generator: MLP((5,), 3, width=6, generator=generator), 8, generator=seeded())
    x, y = torch.randn(40, 5, generator=seeded(1)), torch.arange(40) % 3
    probe = BiasVariance()
    values = Watch(ensemble, [probe, "softmax-collapse"], (x, y), batch_size=16).measure(0)
    h = torch.stack([ensemble.member(i)(x).double().softmax(-1) for i in range(8)])
    expected = filled(h, y).compute()
    assert all(values[key] == pytest.approx(value, rel=1e-5, nan_ok=True) for key, value in expected.items())
    assert values["softmax_collapse"] == 0.0
    assert len(probe.figure().axes) == 2


def test_identical_members_have_no_line():
    """No variance would give a logarithm of zero, or a silent slope."""
    h, y = members(M=2)
    metric = filled(h[:1].expand(5, -1, -1), y)
    values = metric.compute()
    assert values["variance"] == pytest.approx(0, abs=1e-30) and values["dropped"] == 1.0
    assert math.isnan(values[SLOPE]) and "fewer than 3" in metric.skipped[SLOPE]
    assert values["bias2"] > 0


def test_bad_input_is_refused_or_said():
    """Scores for probabilities, one member, NaN, no samples, a plain model: never a silent number."""
    h, y = members(M=3, B=6)
    for bad, message in (
        (h[:1], "at least 2 members"),
        (h[0], "at least 2 members"),
        (3 * h, "apply softmax"),
        (h - 0.5, "apply softmax"),
    ):
        with pytest.raises(InvalidInput, match=message):
            filled(bad, y)
    with pytest.raises(InvalidInput, match=r"0\.\.3"):
        filled(h, y + 4)
    with pytest.raises(InvalidInput, match="expected 7 classes"):
        filled(h, y, num_classes=7)
    h[1, 2, 0] = math.nan
    metric = filled(h, y)
    assert all(math.isnan(value) for value in metric.compute().values()) and "NaN" in metric.skipped[SLOPE]
    probe = BiasVariance()
    assert math.isnan(probe.measure(View(nn.Linear(2, 2)), [])[SLOPE]) and "no ensemble" in probe.skipped[SLOPE]
    one_class = filled(members(B=50)[0], members(B=50)[0].mean(0).argmax(1))
    assert math.isnan(one_class.compute()[f"{SLOPE}_wrong"]) and f"{SLOPE}_wrong" in one_class.skipped
