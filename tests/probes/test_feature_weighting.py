"""Feature weighting against products of matrices, NumPy's spectra and known effective ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.probes.feature_weighting import FeatureWeighting, effective_rank
from assay.probes.view import View


def _linear(seed: int) -> tuple[nn.Sequential, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model, torch.randn(60, 4, generator=generator) + 2


def test_weights_of_a_linear_network_are_column_lengths() -> None:
    """Known features would be weighed otherwise than by W_l ... W_1 v, which biases and offsets must not change."""
    model, x = _linear(0)
    W1, W2 = model[0].weight, model[1].weight
    directions = torch.eye(4)
    values = FeatureWeighting(directions=directions).measure(View(model), [(x[:20], x), (x[20:], x)])
    for name, product in (("0", W1), ("1", W2 @ W1)):
        lengths = product.norm(dim=0)
        for k in range(4):
            assert values[f"feature_weight/{name}/{k}"] == pytest.approx(lengths[k].item(), rel=1e-5)
        inequality = (lengths.max() / lengths.min()).item()
        assert values[f"feature_inequality/{name}"] == pytest.approx(inequality, rel=1e-5)


def test_spectrum_is_numpys() -> None:
    """Rank or condition would come from uncentred outputs, or from variances instead of singular values."""
    model, x = _linear(1)
    values = FeatureWeighting(["1"]).measure(View(model), [(x, x)])
    h = model(x).detach().double().numpy()
    s = np.linalg.svd(h - h.mean(axis=0), compute_uv=False)
    p = s / s.sum()
    assert values["effective_rank/1"] == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-6)
    assert values["condition/1"] == pytest.approx(s[0] / s[-1], rel=1e-6)
    assert effective_rank(model(x).detach()) == pytest.approx(values["effective_rank/1"], rel=1e-5)


def test_effective_rank_counts_equal_directions() -> None:
    """A number of equal directions would not count as that many, whatever their scale, offset or rotation."""
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    for k in (1, 3, 6):
        h = torch.zeros(12, 6, dtype=torch.float64)
        h[:k, :k], h[6 : 6 + k, :k] = 5 * torch.eye(k), -5 * torch.eye(k)
        assert effective_rank(h @ turn + 7) == pytest.approx(k, rel=1e-6)


def test_says_why_a_ratio_is_missing() -> None:
    """A dead unit would make the condition number infinite without a word, or outputs that do not vary a crash."""
    model, x = _linear(2)
    with torch.no_grad():
        model[1].weight[0] = 0
        model[0].weight[:, 1] = 0
    probe = FeatureWeighting(["1"], directions=torch.eye(4))
    values = probe.measure(View(model), [(x, x)])
    assert math.isnan(values["condition/1"]) and "infinite" in probe.skipped["condition/1"]
    assert values["feature_weight/1/1"] == pytest.approx(0, abs=1e-5)
    probe = FeatureWeighting(["1"])
    assert math.isnan(probe.measure(View(model), [(x[:1], x[:1])])["effective_rank/1"])
    assert "do not vary" in probe.skipped["effective_rank/1"]


def test_refuses_directions_that_do_not_fit() -> None:
    """Directions of another input size would fail somewhere inside."""
    model, x = _linear(3)
    with pytest.raises(InvalidInput, match=r"3 entries do not fit inputs \(60, 4\)"):
        FeatureWeighting(directions=torch.eye(3)).measure(View(model), [(x, x)])
    with pytest.raises(InvalidInput, match="directions"):
        FeatureWeighting(directions=torch.ones(3))
    with pytest.raises(InvalidInput, match="do not vary"):
        effective_rank(torch.ones(4, 2))
