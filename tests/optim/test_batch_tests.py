"""The batch tests against their definitions, closed forms and each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.errors import InvalidInput
from assay.models.mlp import MLP
from assay.optim.batch_tests import (
    AugmentedInnerProductTest,
    CoordinateNormTest,
    InnerProductTest,
    NormTest,
    per_sample_gradients,
)


def _random(seed: int, samples: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(samples, *shape, generator=generator, dtype=torch.float64) + 0.3  # noqa: E731
    return {"weight": make(3, 2), "bias": make(3)}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_sizes_follow_the_definitions_in_loops(seed):
    """Summed tensor by tensor, as in the official code, inner products would be others."""
    gradients = _random(seed)
    rows = [torch.cat([g[i].flatten() for g in gradients.values()]) for i in range(12)]
    mean = sum(rows) / 12
    variance = sum((r - mean).square().sum() for r in rows) / 11
    products = [r @ mean for r in rows]
    centre = sum(products) / 12
    along = sum((c - centre) ** 2 for c in products) / 11
    across_rows = [r - c * mean / (mean @ mean) for r, c in zip(rows, products, strict=True)]
    across_mean = sum(across_rows) / 12
    across = sum((o - across_mean).square().sum() for o in across_rows) / 11
    squared = mean @ mean
    assert NormTest(0.5)(gradients) == pytest.approx(float(variance / (0.25 * squared)))
    assert InnerProductTest(0.7)(gradients) == pytest.approx(float(along / (0.49 * squared**2)))
    augmented = max(float(along / (0.49 * squared**2)), float(across / (1.21 * squared)))
    assert AugmentedInnerProductTest(0.7, 1.1)(gradients) == pytest.approx(augmented)
    entries = [float(torch.stack([r[j] for r in rows]).var() / (0.25 * mean[j] ** 2)) for j in range(len(mean))]
    assert CoordinateNormTest(0.5)(gradients) == pytest.approx(max(entries))


def test_variances_of_a_part_go_with_the_mean_of_the_whole():
    """A test would use the part's mean, whose square is too large by the part's noise."""
    gradients = _random(7)
    part = {name: g[:5] for name, g in gradients.items()}
    mean = {name: g.mean(0) for name, g in gradients.items()}
    rows = torch.cat([g.flatten(1) for g in part.values()], 1)
    m = torch.cat([g.flatten() for g in mean.values()])
    squared, along = float(m @ m), float((rows @ m).var())
    across = float((rows - torch.outer(rows @ m, m) / squared).var(0).sum())
    assert NormTest(0.5)(part, mean) == pytest.approx(float(rows.var(0).sum()) / (0.25 * squared))
    assert InnerProductTest(0.7)(part, mean) == pytest.approx(along / (0.49 * squared**2))
    assert AugmentedInnerProductTest(9.0, 1.1)(part, mean) == pytest.approx(across / (1.21 * squared))
    assert CoordinateNormTest(0.5)(part, mean) == pytest.approx(float((rows.var(0) / (0.25 * m**2)).max()))
    with pytest.raises(InvalidInput, match="bias"):
        NormTest()(part, {"weight": mean["weight"]})


@pytest.mark.parametrize("test", [NormTest(), InnerProductTest(), AugmentedInnerProductTest(), CoordinateNormTest()])
def test_sizes_of_half_precision_complex_and_not_finite_gradients(test):
    """Squares of small half-precision numbers are 0, and a comparison with NaN says that the mean is."""
    small = {name: 1e-4 * g.float() for name, g in _random(3).items()}
    half = {name: g.half() for name, g in small.items()}
    assert test(half) == pytest.approx(test(small), rel=0.2)
    pairs = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0)) + 1
    assert test({"w": torch.view_as_complex(pairs)}) == test({"w": pairs})
    small["bias"][2, 1] = math.nan
    assert math.isnan(test(small))


def test_the_norm_test_splits_into_the_other_two():
    """The norm test's tr Var(g) = Var(c) / |m|^2 + tr Var(o), so that it adds what the others compare."""
    gradients = _random(5)
    along = InnerProductTest(1.0)(gradients)
    for nu in (1e-3, 1.0):
        across = AugmentedInnerProductTest(1e6, nu)(gradients) * nu**2
        assert NormTest(1.0)(gradients) == pytest.approx(along + across)


def test_noise_around_a_mean_gives_the_expected_size():
    """With g_i = mu + s z_i in d dimensions, E|m|^2 = |mu|^2 + d s^2 / b."""
    d, s, b, eta = 400, 0.5, 64, 0.8
    generator = torch.Generator().manual_seed(0)
    mu = torch.full((d,), 0.1)
    sizes = [NormTest(eta)({"w": mu + s * torch.randn(b, d, generator=generator)}) for _ in range(40)]
    expected = d * s**2 / (eta**2 * (float(mu @ mu) + d * s**2 / b))
    assert sum(sizes) / 40 == pytest.approx(expected, rel=0.03)
    pure = NormTest(eta)({"w": torch.randn(b, 20_000, generator=generator)})
    assert pure / b == pytest.approx(1 / eta**2, rel=0.05)


def test_equal_samples_never_ask_for_more():
    """A batch without variance would grow, or divide 0 by 0."""
    same = {"w": torch.ones(4, 3)}
    cancelling = {"w": torch.tensor([[1.0], [-1.0]])}
    for test in (NormTest(), InnerProductTest(), AugmentedInnerProductTest(), CoordinateNormTest()):
        assert test(same) == 0
    assert NormTest()(cancelling) == CoordinateNormTest()(cancelling) == math.inf


def test_per_sample_gradients_are_those_of_single_samples():
    """A sample's gradient would have another's in it."""
    model = MLP((5,), 3, width=4, generator=torch.Generator().manual_seed(0)).double()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    found = per_sample_gradients(model, nn.functional.cross_entropy, x, y)
    for i in range(6):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad)


def test_bad_input_is_refused():
    """Batch norm gives no sample a gradient of its own, unless it is frozen; one sample has no variance."""
    normalised = MLP((5,), 3, width=4, batch_norm=True)
    with pytest.raises(InvalidInput, match="BatchNorm1d"):
        per_sample_gradients(normalised, nn.functional.cross_entropy, torch.ones(2, 5), torch.tensor([0, 1]))
    with pytest.raises(InvalidInput, match="at least 2"):
        NormTest()({"w": torch.ones(1, 3)})
    model, frozen = (MLP((5,), 3, width=4, batch_norm=True).eval() for _ in range(2))
    frozen.load_state_dict(model.state_dict())
    x, y = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    nn.functional.cross_entropy(model(x), y).backward()
    rows = per_sample_gradients(frozen, nn.functional.cross_entropy, x, y)
    torch.testing.assert_close(rows["head.weight"].mean(0), model.head.weight.grad)
    for make in (lambda: NormTest(0.0), lambda: InnerProductTest(-1.0), lambda: CoordinateNormTest(math.inf)):
        with pytest.raises(InvalidInput, match="above 0"):
            make()
