"""Linear probes against scikit-learn's logistic regression, the optimality condition, and what scaling must not undo."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.nn.projection_heads import FixedReweightingHead, WithProjectionHead
from assay.probes.linear_probe import LinearProbe, fit_linear_probe
from assay.probes.view import View


def _data(seed: int, samples: int = 80) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    return torch.randn(samples, 5, generator=generator) + 1.5 * F.one_hot(y, 5), y


def test_is_scikit_learns_logistic_regression() -> None:
    """Loss, decay or scaling would be others: C = 1 / (N decay) on centred features over one common deviation."""
    h, y = _data(0)
    readout = fit_linear_probe(h, y, decay=0.05)
    centred = h.double() - h.double().mean(dim=0)
    u = centred / centred.square().mean().sqrt()
    model = LogisticRegression(C=1 / (0.05 * len(y)), tol=1e-10, max_iter=5000).fit(u.numpy(), y.numpy())
    torch.testing.assert_close(readout.weight, torch.from_numpy(model.coef_), rtol=0, atol=1e-4)
    assert readout.accuracy(h, y) == pytest.approx(model.score(u.numpy(), y.numpy()))
    probability = torch.from_numpy(model.predict_proba(u.numpy()))
    torch.testing.assert_close(readout.scores(h).softmax(dim=1), probability, rtol=0, atol=1e-4)


def test_common_scale_and_rotation_do_not_count_but_weighting_does() -> None:
    """The probe would depend on units, or undo the weighting of features that it is to compare."""
    h, y = _data(1)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0))).Q
    scores = fit_linear_probe(h, y).scores(h)
    turned = 7 * h @ turn + 3
    torch.testing.assert_close(fit_linear_probe(turned, y).scores(turned), scores, rtol=1e-3, atol=1e-3)
    weighed = h * torch.tensor([1e-3, 1e-3, 1e-3, 1.0, 1.0])  # the informative features made small
    assert fit_linear_probe(weighed, y).accuracy(weighed, y) < fit_linear_probe(h, y).accuracy(h, y) - 0.2


def test_layers_are_told_apart_on_labels_of_their_own() -> None:
    """Pre- and post-projection accuracy would be exchanged, or fitted to the labels that the network is trained on."""
    (x, y), (told, z) = _data(2), _data(3)
    model = WithProjectionHead(nn.Identity(), FixedReweightingHead(5, kappa=1.0))
    model.head.weight.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]))
    probe = LinearProbe(["encoder", "head"], held_out=(told, z), fit=(x, y))
    values = probe.measure(View(model), [(x, torch.zeros_like(y))])
    assert values["linear_probe/encoder"] == fit_linear_probe(x, y).accuracy(told, z)
    assert values["linear_probe/head"] < 0.6 < values["linear_probe/encoder"]


def test_missing_classes_and_flat_layers() -> None:
    """A class that the fit has not seen would be an error, or a layer that does not vary a crash."""
    (x, y), (told, z) = _data(4), _data(5)
    model = nn.Sequential(nn.Identity(), nn.Linear(5, 2))
    nn.init.zeros_(model[1].weight)
    probe = LinearProbe(["0", "1"], held_out=(told, z))
    values = probe.measure(View(model), [(x[y < 2], y[y < 2])])
    assert 0.4 < values["linear_probe/0"] <= 2 / 3 + 0.02  # a third of the held-out samples is of the third class
    assert math.isnan(values["linear_probe/1"]) and "do not vary" in probe.skipped["linear_probe/1"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h, y: fit_linear_probe(h, y, decay=0.0), "decay > 0"),
        (lambda h, y: fit_linear_probe(h[:0], y[:0]), "at least one sample"),
        (lambda h, y: fit_linear_probe(h * torch.nan, y), "not finite"),
        (lambda h, y: fit_linear_probe(h, y, num_classes=2), r"0\.\.1"),
        (lambda h, y: fit_linear_probe(h, y).accuracy(h, y + 1), r"0\.\.2"),
        (lambda h, y: LinearProbe(["0"], (h, y), decay=-1.0), "decay must be above 0"),
    ],
)
def test_refuses_bad_input(call: object, message: str) -> None:
    """A probe would be fitted to nothing, or told classes that it does not know."""
    with pytest.raises(InvalidInput, match=message):
        call(*_data(6))  # type: ignore[operator]
