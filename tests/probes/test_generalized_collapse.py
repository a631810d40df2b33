"""GNC1 to GNC3 against the definitions written the slow way, limits, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes.generalized_collapse import GeneralizedCollapse
from assay.probes.one_vs_rest import one_vs_rest_margin
from assay.probes.softmax_codes import softmax_code
from assay.watch import Watch


def _problem(K: int = 7, d: int = 3, n: int = 90, noise: float = 0.3) -> tuple[Tensor, Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(K)
    targets = torch.randint(K, (n,), generator=generator)
    means = torch.randn(K, d, generator=generator)
    features = means[targets] + noise * torch.randn(n, d, generator=generator)
    head = nn.Linear(d, K)
    head.weight.data.copy_(torch.randn(K, d, generator=generator))
    return features, targets, head


def _measured(
    features: Tensor, targets: Tensor, head: nn.Linear | None, **options: int
) -> tuple[dict[str, float], dict[str, str]]:
    probe = GeneralizedCollapse(7 if head is None else None, **options)
    for h, y in zip(features.split(25), targets.split(25), strict=True):
        probe.update(h, y, head=head)
    return probe.compute(), probe.skipped


@pytest.mark.parametrize("K", [3, 7])
def test_measures_are_the_definitions(K: int) -> None:
    """A scatter, a mean or a cosine would be another one: sums over samples and numpy's pseudo-inverse must agree."""
    features, targets, head = _problem(K)
    values, _ = _measured(features, targets, head)
    h = features.double().numpy()
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    w = head.weight.detach().double().numpy()
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    y = targets.numpy()
    mu = np.stack([h[y == k].mean(axis=0) for k in range(K)])
    within = sum(np.outer(row - mu[k], row - mu[k]) for row, k in zip(h, y, strict=True)) / len(h)
    centred = mu - mu.mean(axis=0)
    between = sum(np.outer(m, m) for m in centred) / K
    assert values["gnc1"] == pytest.approx(np.trace(within @ np.linalg.pinv(between, rcond=1e-8)) / K)
    for key, means in (("gnc3", mu), ("gnc3_centered", centred)):
        cosines = [m @ v / np.linalg.norm(m) for m, v in zip(means, w, strict=True)]
        assert values[key] == pytest.approx(1 - np.mean(cosines))
    rho = one_vs_rest_margin(torch.from_numpy(w))
    assert (values["rho_min"], values["rho_mean"]) == (rho.min().item(), rho.mean().item())


def test_a_softmax_code_is_fully_collapsed() -> None:
    """At the end of training as the theorem has it, the measures would not be 0, the code's margin, 1 and 0."""
    code = softmax_code(10, 4, restarts=4)
    head = nn.Linear(4, 10, bias=False).double()
    head.weight.data.copy_(3 * code.W)
    values, skipped = _measured(
        code.W.repeat(3, 1) * torch.linspace(0.1, 9, 30)[:, None], torch.arange(10).repeat(3), head
    )
    assert values["gnc1"] < 1e-13 and values["gnc3"] < 1e-13
    assert values["rho_min"] == pytest.approx(5 / 6, rel=1e-5) and values["rho_ratio"] == pytest.approx(1, rel=1e-5)
    assert not skipped


def test_small_spread_keeps_its_digits() -> None:
    """Variability of a nearly collapsed network would drown in rounding: it falls with the noise's square."""
    small, large = (
        _measured(*(t.double() if t.is_floating_point() else t for t in _problem(noise=noise)[:2]), None)[0]["gnc1"]
        for noise in (1e-6, 1e-4)
    )  # type: ignore[union-attr]
    assert large / small == pytest.approx(1e4, rel=0.05)


def test_rotations_lengths_and_classes_in_another_order_do_not_matter() -> None:
    """Measures on the sphere would see lengths, or prefer a basis or a class."""
    features, targets, head = _problem()
    base, _ = _measured(features, targets, head)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5))).Q
    order = torch.randperm(7, generator=torch.Generator().manual_seed(6))
    other = nn.Linear(3, 7)
    other.weight.data[order] = head.weight.data @ rotation * torch.linspace(0.5, 4, 7)[:, None]
    lengths = torch.linspace(0.1, 5, len(features))[:, None]
    moved, _ = _measured(lengths * features @ rotation, order[targets], other)
    for key in base.keys() - {"rho_ratio"}:
        assert moved[key] == pytest.approx(base[key], rel=1e-4)


def test_the_ratio_is_to_the_best_code_and_needs_one() -> None:
    """A margin would be held against K / (K - 1), which no code has, or a missing code would go unsaid."""
    features, targets, head = _problem()
    values, skipped = _measured(features, targets, head)
    assert math.isnan(values["rho_ratio"]) and "7 classes in 3 dimensions" in skipped["rho_ratio"]
    values, skipped = _measured(features, targets, head, code_restarts=4)
    assert values["rho_ratio"] == pytest.approx(values["rho_min"] / softmax_code(7, 3, 4).rho) and not skipped


def _reason(change: str) -> str:
    features, targets, head = _problem()
    if change == "nan":
        features[3, 0] = math.nan
    elif change == "zero":
        features[:2] = 0
    elif change == "missing":
        targets[targets == 4] = 0
    elif change == "single":
        features, targets = features[:7], torch.arange(7)
    elif change == "line":
        features = features[:, :1].repeat(1, 3) ** 0
    elif change == "head":
        head.weight.data[2] = 0
    values, skipped = _measured(features, targets, head)
    key = "rho_min" if change == "head" else "gnc1"
    assert math.isnan(values[key])
    return skipped[key]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("nan", "NaN or infinity"),
        ("zero", "2 samples have features of length 0"),
        ("missing", "1 of 7 classes have no samples, the first is 4"),
        ("single", "no class has two samples"),
        ("line", "span fewer directions"),
        ("head", "a class vector of the head is 0"),
    ],
)
def test_what_is_undefined_is_said(change: str, reason: str) -> None:
    """A number would come out where there is none."""
    assert reason in _reason(change)


def test_a_head_that_does_not_fit_and_no_head() -> None:
    """Another layer's weights would be measured, or a network without a head would fail."""
    features, targets, _ = _problem()
    values, skipped = _measured(features, targets, None)
    assert math.isfinite(values["gnc1"]) and skipped["rho_min"] == "the network has no linear head on these features"
    with pytest.raises(InvalidInput, match=r"weight \(7, 4\) does not fit \(7, 3\)"):
        _measured(features, targets, nn.Linear(4, 7))
    with pytest.raises(InvalidInput, match="seen no samples"):
        GeneralizedCollapse(3).compute()
    with pytest.raises(InvalidInput, match="num_classes >= 2"):
        GeneralizedCollapse(1)


def test_watch_finds_tied_and_frozen_heads() -> None:
    """A head that shares its weight, or is not trained, would be another head."""
    features, targets, head = _problem()
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 7))
    model[1].weight = head.weight.requires_grad_(False)
    expected, _ = _measured(features, targets, head)
    found = Watch(model, ["generalized-collapse"], (features, targets)).measure(0)
    assert found == pytest.approx(expected, nan_ok=True)
