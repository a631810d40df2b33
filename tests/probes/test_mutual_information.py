"""Information of binned and of noisy activations: against closed forms, sums over a joint table, scikit-learn and quadrature."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.metrics import mutual_info_score

from assay.errors import InvalidInput
from assay.probes.mutual_information import BINNINGS, binned_mutual_information, kde_mutual_information


def layer(N=200, d=3, seed=0, scale=0.5):
    """Activations and labels of three classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (N,), generator=generator)
    return scale * (torch.randn(N, d, generator=generator, dtype=torch.float64) + y[:, None]), y


def information_of_words(words, y):
    """I(X; T) and I(T; Y) from the joint table, x being the sample itself: sum of p log p / (p p)."""
    N = len(words)
    p_t, p_y, joint = Counter(words), Counter(y), Counter(zip(words, y, strict=True))
    i_xt = sum(1 / N * math.log2((1 / N) / (1 / N * p_t[w] / N)) for w in words)
    return i_xt, sum(n / N * math.log2(n * N / (p_t[w] * p_y[k])) for (w, k), n in joint.items())


def bin_of(value, binning, values):
    """The bin of one activation, from the definition."""
    if binning == "bins":
        return sum(value >= -1 + 2 * k / 29 for k in range(30))
    if binning == "fixed_width":
        return math.floor(value / 0.07)
    if binning == "range":
        low, high = min(values), max(values)
        return min(math.floor(30 * (value - low) / (high - low)), 29)
    return min(math.floor(30 * sum(v < value for v in values) / (len(values) - 1)), 29)


@pytest.mark.parametrize("binning", BINNINGS)
def test_binned_information_is_that_of_the_joint_table(binning):
    """Bins, entropies or their combination are wrong."""
    t, y = layer(N=150, d=2)
    values = t.flatten().tolist()
    words = [tuple(bin_of(v, binning, values) for v in row) for row in t.tolist()]
    expected = information_of_words(words, y.tolist())
    assert binned_mutual_information(t, y, binning) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("binning", BINNINGS)
def test_information_on_the_label_agrees_with_scikit_learn(binning):
    """I(T; Y) is not the mutual information of two labelings."""
    t, y = layer(d=1)
    values = t.flatten().tolist()
    codes = [bin_of(v, binning, values) for v in values]
    expected = mutual_info_score(codes, y) / math.log(2)
    assert binned_mutual_information(t, y, binning).i_ty == pytest.approx(expected, abs=1e-9)


def test_fine_bins_and_constants_are_the_two_ends():
    """An injective layer does not know all of the input, or a constant one knows something."""
    t, y = layer(N=256)
    entropy = -sum(p * math.log2(p) for p in (torch.bincount(y) / 256).tolist())
    assert binned_mutual_information(t, y, "fixed_width", width=1e-9) == pytest.approx((8.0, entropy))
    for binning in BINNINGS:
        assert binned_mutual_information(torch.ones(256, 3), y, binning) == (0.0, 0.0)


def test_what_lies_beyond_the_edges_is_not_told_apart():
    """The fixed range does not clip, which is what makes ReLU layers look compressed; or both ends share a bin."""
    t, y = torch.tensor([[1.5], [7.0], [90.0], [-3.0], [-50.0], [0.0]]), torch.tensor([0, 1, 0, 1, 0, 1])
    assert binned_mutual_information(t, y).i_xt == pytest.approx(information_of_words("aaabbc", [0] * 6)[0])


@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0.01, 3))
@settings(max_examples=30, deadline=None)
def test_bounds_hold_whatever_the_layer(seed, d, scale):
    """A value leaves its range, or the two bounds change places."""
    t, y = layer(N=64, d=d, seed=seed, scale=scale)
    counts = torch.bincount(y)
    entropy = -sum(p * math.log2(p) for p in (counts[counts > 0] / 64).tolist())
    for binning in BINNINGS:
        i_xt, i_ty = binned_mutual_information(t, y, binning)
        assert 0 <= i_ty <= i_xt <= 6 + 1e-9 and i_ty <= entropy + 1e-9
    lower, upper = (kde_mutual_information(t, y, noise_variance=0.01, bound=b) for b in ("lower", "upper"))
    assert -1e-9 <= lower.i_xt <= upper.i_xt + 1e-6 <= 6 + 2e-6


@given(st.integers(0, 10_000), st.permutations(range(40)))
@settings(max_examples=15, deadline=None)
def test_order_of_samples_and_units_does_not_matter(seed, order):
    """Samples are sorted by class inside; a mix-up of rows and labels would show."""
    t, y = layer(N=40, seed=seed)
    moved, labels = t[list(order)].flip(1), y[list(order)]
    assert binned_mutual_information(moved, labels) == pytest.approx(binned_mutual_information(t, y))
    assert kde_mutual_information(moved, labels) == pytest.approx(kde_mutual_information(t, y), abs=1e-6)


@pytest.mark.parametrize("distance", [0.0, 0.02, 0.1, 10.0])
@pytest.mark.parametrize(("bound", "factor"), [("upper", 2), ("lower", 8)])
def test_two_points_have_a_closed_form(distance, bound, factor):
    """The exponent, the self term or the unit of the kernel estimate is wrong."""
    t, y = torch.tensor([[0.0], [distance]], dtype=torch.float64), torch.tensor([0, 1])
    expected = -math.log2((1 + math.exp(-(distance**2) / (factor * 1e-3))) / 2)
    assert kde_mutual_information(t, y, bound=bound) == pytest.approx((expected, expected), abs=1e-6)


@pytest.mark.parametrize(("bound", "factor"), [("upper", 2), ("lower", 8)])
def test_kernel_estimate_equals_the_double_sum(bound, factor):
    """Distances, chunks or the split into classes are wrong, also far from the origin."""
    t, y = layer(N=120, d=4, scale=0.1)

    def information(rows):
        d = ((rows[:, None] - rows[None]) ** 2).sum(-1)
        return -np.mean(logsumexp(-d / (factor * 0.01), axis=1) - math.log(len(rows))) / math.log(2)

    rows, labels = t.numpy(), y.numpy()
    i_xt = information(rows)
    i_ty = i_xt - sum((labels == k).mean() * information(rows[labels == k]) for k in range(3))
    for shift in (0.0, 1e4):
        found = kde_mutual_information(t + shift, y, noise_variance=0.01, bound=bound)
        assert found == pytest.approx((i_xt, i_ty), abs=1e-5)


def test_bounds_enclose_the_information_of_the_noisy_layer():
    """They bound something else: the true value is integrated numerically for three points with noise."""
    points, variance = np.array([0.0, 0.3, 1.0]), 0.04
    z = np.linspace(-3, 4, 20_001)
    density = np.exp(-((z[:, None] - points) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    mixture = density.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(density > 0, density * np.log2(density / mixture[:, None]), 0).mean(axis=1)
    true = float(np.trapezoid(terms, z))
    t, y = torch.tensor(points)[:, None], torch.arange(3)
    lower, upper = (kde_mutual_information(t, y, noise_variance=variance, bound=b).i_xt for b in ("lower", "upper"))
    assert lower < true < upper and upper - lower < 0.6


def test_far_points_and_little_noise_give_the_binned_limit():
    """Estimators disagree where there is nothing to estimate: clusters that both bins and noise tell apart."""
    centres = torch.tensor(list(itertools.product([-0.9, 0.0, 0.9], repeat=2)))
    t, y = centres.repeat_interleave(5, dim=0), torch.arange(45) % 2
    binned = binned_mutual_information(t, y, "fixed_width")
    assert binned.i_xt == pytest.approx(math.log2(9))
    for bound in ("upper", "lower"):
        assert kde_mutual_information(t, y, bound=bound, noise_variance=1e-6) == pytest.approx(binned, abs=1e-6)


@pytest.mark.parametrize(
    ("t", "y", "options", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), {}, "must be floats"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), {}, "must be floats"),
        (torch.zeros(3, 2), torch.zeros(3), {}, "integer labels"),
        (torch.zeros(3, 2), torch.zeros(4, dtype=torch.long), {}, "integer labels"),
        (torch.full((3, 2), math.nan), torch.zeros(3, dtype=torch.long), {}, "NaN or infinite"),
    ],
)
def test_bad_input_is_refused(t, y, options, message):
    """A number comes out of nothing."""
    for estimate in (binned_mutual_information, kde_mutual_information):
        with pytest.raises(InvalidInput, match=message):
            estimate(t, y, **options)


def test_bad_options_are_refused():
    """A misspelt estimator or an empty range measures something else."""
    t, y = layer(N=10)
    for options in ({"binning": "bin"}, {"bins": 1}, {"low": 1.0, "high": 1.0}, {"width": 0.0}):
        with pytest.raises(InvalidInput):
            binned_mutual_information(t, y, **options)
    for options in ({"noise_variance": 0.0}, {"bound": "middle"}):
        with pytest.raises(InvalidInput):
            kde_mutual_information(t, y, **options)
