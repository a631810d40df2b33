from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from assay.errors import InvalidInput
from assay.lab.statistics import equivalence_test, holm, paired_t_interval, sign_flip_test, t_interval, t_test

ROOT = Path(__file__).parents[2]
ALTERNATIVES = ["two-sided", "greater", "less"]


def normal(seed: int, *shape: int) -> np.ndarray:
    """Return standard normal samples."""
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("n", [2, 3, 6, 17])
def test_t_test_is_scipys(alternative: str, n: int) -> None:
    """If this failed, p-values would not be those of Student's test."""
    sample = normal(n, n) + 0.3
    expected = stats.ttest_1samp(sample, 0.1, alternative=alternative).pvalue
    assert t_test(sample, 0.1, alternative) == pytest.approx(expected, rel=1e-10)  # type: ignore[arg-type]


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 6, 17])
def test_paired_interval_is_scipys(confidence: float, n: int) -> None:
    """If this failed, reported intervals would not be paired t intervals."""
    a, b = normal(n, n), normal(n + 100, n)
    expected = stats.ttest_rel(a, b).confidence_interval(confidence)
    assert paired_t_interval(a, b, confidence) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_interval_covers_in_95_of_100_at_six_seeds() -> None:
    """If this failed, an interval called 95 % would mislead; 20,000 repeats leave a standard error of 0.15 %."""
    samples = normal(0, 20_000, 6) + 0.7
    intervals = np.array([t_interval(sample) for sample in samples])
    covered = np.mean((intervals[:, 0] <= 0.7) & (intervals[:, 1] >= 0.7))
    assert 0.945 <= covered <= 0.955


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("n", [2, 5, 6, 9])
def test_sign_flip_test_is_scipys_permutation_test(alternative: str, n: int) -> None:
    """If this failed, the sign-flip test would not be the exact permutation test of a paired sample."""
    for seed in range(5):
        sample = normal(seed, n) + 0.4
        expected = stats.permutation_test(
            (sample,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative=alternative
        ).pvalue
        assert sign_flip_test(sample, alternative=alternative) == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=8), st.sampled_from(ALTERNATIVES))
def test_sign_flip_test_is_brute_force_with_ties(sample: list[int], alternative: str) -> None:
    """If this failed, ties and zeros (frequent with accuracies on few samples) would be miscounted."""
    sums = [sum(s * x for s, x in zip(p, sample, strict=True)) for p in itertools.product([1, -1], repeat=len(sample))]
    total = sum(sample)
    extreme = {
        "two-sided": [abs(s) >= abs(total) for s in sums],
        "greater": [s >= total for s in sums],
        "less": [s <= total for s in sums],
    }[alternative]
    assert sign_flip_test([0.1 * x for x in sample], alternative=alternative) == pytest.approx(np.mean(extreme))  # type: ignore[arg-type]


def test_sign_flip_test_stays_exact_where_patterns_are_too_many_to_list() -> None:
    """If this failed, counting by halves would differ from the known distribution of a sum of 32 signs."""
    sample = [1.0] * 22 + [-1.0] * 10
    expected = stats.binom.sf(21, 32, 0.5)
    assert sign_flip_test(sample, alternative="greater") == pytest.approx(expected, rel=1e-9)


def test_drawn_sign_flips_agree_with_the_normal_limit() -> None:
    """If this failed, the test above 32 seeds would not estimate the same share, or depend on hidden randomness."""
    sample = [1.0] * 28 + [-1.0] * 12
    first = sign_flip_test(sample, generator=np.random.default_rng(3))
    assert first == sign_flip_test(sample, generator=np.random.default_rng(3))
    assert first == pytest.approx(2 * stats.binom.sf(27, 40, 0.5), abs=4 * math.sqrt(0.017 / 19_999))
    with pytest.raises(InvalidInput, match="Generator"):
        sign_flip_test(sample)


def test_smallest_sign_flip_p_value() -> None:
    """If this failed, six seeds would not be the least with which 0.05 can be reached."""
    assert sign_flip_test(np.arange(1, 7)) == 2 / 2**6 < 0.05 < sign_flip_test(np.arange(1, 6))


def test_sign_flip_test_is_valid_for_heavy_tails() -> None:
    """If this failed, the guard against non-normal differences would itself reject too often."""
    samples = np.random.default_rng(5).standard_cauchy((4000, 6))
    assert np.mean([sign_flip_test(sample) <= 0.05 for sample in samples]) <= 0.05


def test_equivalence_is_two_one_sided_tests_by_hand() -> None:
    """If this failed, equivalence would not be Schuirmann's test, nor agree with the 90 % interval's inclusion."""
    for seed in range(200):
        sample = normal(seed, 6)
        mean, error = sample.mean(), sample.std(ddof=1) / math.sqrt(6)
        by_hand = max(stats.t.sf((mean + 1) / error, 5), stats.t.cdf((mean - 1) / error, 5))
        p = equivalence_test(sample, -1, 1)
        assert p == pytest.approx(by_hand, rel=1e-9)
        low, high = t_interval(sample, 0.9)
        assert (p <= 0.05) == (low >= -1 and high <= 1)


def test_equivalence_is_rarely_claimed_at_the_margin() -> None:
    """If this failed, arms that differ by the whole margin would be called equivalent in more than 5 of 100 studies."""
    samples = normal(8, 10_000, 6) * 0.2 + 1.0
    claimed = np.mean([equivalence_test(sample, -1, 1) <= 0.05 for sample in samples])
    assert claimed <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 10_000)


def test_an_open_end_makes_equivalence_one_sided() -> None:
    """If this failed, one-sided claims would not be the limit of two-sided ranges."""
    sample = normal(1, 6)
    assert equivalence_test(sample, -math.inf, 0.5) == t_test(sample, 0.5, "less")
    assert equivalence_test(sample, 0.5, math.inf) == t_test(sample, 0.5, "greater")


def test_constant_samples_are_exact() -> None:
    """If this failed, deterministic quantities such as parameter counts would give NaN or rounding noise."""
    sample = [0.1] * 7  # numpy's mean of these is not 0.1
    assert t_interval(sample) == (0.1, 0.1)
    assert t_test(sample, 0.1) == t_test(sample, 0.1, "greater") == t_test(sample, 0.1, "less") == 1
    assert t_test(sample, 0.0) == t_test(sample, 0.0, "greater") == 0
    assert t_test(sample, 0.0, "less") == 1
    assert sign_flip_test(sample, 0.1) == 1
    assert equivalence_test(sample, 0.0, 0.2) == 0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_extreme_units_do_not_matter(scale: float) -> None:
    """If this failed, tiny probabilities or exploding losses would overflow into certainty or NaN."""
    sample = normal(2, 6) + 1
    assert t_test(scale * sample, 0.0) == pytest.approx(t_test(sample, 0.0))
    assert sign_flip_test(scale * sample) == sign_flip_test(sample)
    assert t_interval(scale * sample) == pytest.approx(tuple(scale * end for end in t_interval(sample)))


def test_holm_by_hand() -> None:
    """If this failed, Holm's worked example (multiply by 4, 3, 2, 1 in order, keep the running maximum) would not hold."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, 0.9]) == (1.0, 1.0)
    assert holm([]) == ()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_holm_is_monotone_conservative_and_blind_to_order(p_values: list[float], random: object) -> None:
    """If this failed, an adjusted p-value could beat its raw one, change ranks, or depend on the order of claims."""
    adjusted = holm(p_values)
    assert all(raw <= new <= 1 for raw, new in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)
    assert min(adjusted) == pytest.approx(min(1, len(p_values) * min(p_values)))
    shuffled = list(range(len(p_values)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert holm([p_values[i] for i in shuffled]) == tuple(adjusted[i] for i in shuffled)


@pytest.mark.parametrize("sample", [[1.0], [], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_bad_samples_are_refused(sample: list) -> None:
    """If this failed, a missing seed would turn into NaN verdicts instead of one clear line."""
    for test in (t_interval, t_test, sign_flip_test, lambda s: equivalence_test(s, -1, 1)):
        with pytest.raises(InvalidInput, match="sample"):
            test(sample)


def test_bad_options_are_refused() -> None:
    """If this failed, a misspelt alternative or an empty range would silently test something else."""
    with pytest.raises(InvalidInput, match="alternative"):
        t_test([1.0, 2.0], 0.0, "larger")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="lower < upper"):
        equivalence_test([1.0, 2.0], 1, -1)
    with pytest.raises(InvalidInput, match="confidence"):
        t_interval([1.0, 2.0], 95)
    with pytest.raises(InvalidInput, match="same length"):
        paired_t_interval([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(InvalidInput, match="p-values"):
        holm([0.5, math.nan])


def test_the_guides_tables_are_the_measured_ones() -> None:
    """If this failed, the guide on verdicts would quote rates that nothing measured."""
    spec = importlib.util.spec_from_file_location("statistics_coverage", ROOT / "bench" / "statistics_coverage.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    results = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    guide = bench.GUIDE.read_text(encoding="utf-8")
    assert guide == bench.filled(guide, results)
    assert all(f"<!-- /{name} -->" in guide for name in bench.MEASUREMENTS)


def test_the_measured_rates_keep_the_promises() -> None:
    """If this failed, the published measurements would contradict what the guide promises."""
    tables = json.loads((ROOT / "bench/results/statistics_coverage.json").read_text(encoding="utf-8"))["tables"]
    assert all(0.94 <= row["t"] <= 0.96 for row in tables["coverage"])
    assert all(row["either"] <= 0.05 for row in tables["false_verdicts"] if row["differences"] == "normal")
    assert all(row["holds"] <= 0.05 for row in tables["false_equivalence"])
    assert all(row["any"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / row["repeats"]) for row in tables["false_families"])
