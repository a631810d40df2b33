from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from assay.errors import InvalidInput, UnknownName
from assay.lab._samples import Trials, perfect_correlation, rank_correlation
from assay.lab.expectations import (
    Expectation,
    above,
    below,
    correlates,
    equivalent,
    from_plain,
    greater,
    less,
    monotone,
    ratio,
)
from assay.lab.quantities import at, difference, reach, spread
from assay.lab.record import Record, Series

ARMS = "abcde"
TRIALS = Trials({
    arm: {
        seed: Record({"accuracy": 0.5 + 0.1 * i + 0.01 * seed, "loss": 2.0**-i}, {"accuracy": Series((1, 2), (0.3, 0.3 + 0.2 * i))})
        for seed in range(2)
    }
    for i, arm in enumerate(ARMS)
})  # fmt: skip

# Expectation, its sentence, and per sample: text, lower, upper, values over the two seeds.
INF = math.inf
TABLE: list[tuple[Expectation, str, list[tuple[str, float, float, list[float]]]]] = [
    (greater("accuracy", "b", "a", 0.05), "accuracy: b > a (margin 0.05)", [("b > a", 0.05, INF, [0.1, 0.1])]),
    (less("loss", "b", "a", 0.25), "loss: b < a (margin 0.25)", [("b < a", -INF, -0.25, [-0.5, -0.5])]),
    (less("loss", "b", "a"), "loss: b < a", [("b < a", -INF, 0.0, [-0.5, -0.5])]),
    (above("accuracy", 0.4, ["a", "b"]), "accuracy > 0.4 in a, b",
     [("a > 0.4", 0.4, INF, [0.5, 0.51]), ("b > 0.4", 0.4, INF, [0.6, 0.61])]),
    (below("loss", 2), "loss < 2 in every arm", [(f"{a} < 2", -INF, 2, [2.0**-i] * 2) for i, a in enumerate(ARMS)]),
    (below(spread("loss", ["a", "c"]), 1), "spread of loss over a, c < 1",
     [("spread of loss over a, c < 1", -INF, 1, [0.75, 0.75])]),
    (equivalent("accuracy", within=0.3, arms=["a", "b", "c"]), "accuracy: a, b, c equivalent within 0.3",
     [("a = b", -0.3, 0.3, [-0.1] * 2), ("a = c", -0.3, 0.3, [-0.2] * 2), ("b = c", -0.3, 0.3, [-0.1] * 2)]),
    (ratio("loss", "b", "a", below=0.6), "loss: b / a < 0.6", [("b / a < 0.6", -INF, math.log(0.6), [math.log(0.5)] * 2)]),
    (ratio("loss", "a", "b", above=1.5), "loss: a / b > 1.5", [("a / b > 1.5", math.log(1.5), INF, [math.log(2)] * 2)]),
    (correlates("loss", "accuracy", below=-0.8), "rank correlation of loss and accuracy across all arms < -0.8",
     [("correlation across 5 arms < -0.8", -INF, math.atanh(-0.8), [math.atanh(-0.95)] * 2)]),
    (monotone("loss", ["a", "b", "c"], increasing=False), "loss: a > b > c",
     [("b < a", -INF, 0.0, [-0.5] * 2), ("c < b", -INF, 0.0, [-0.25] * 2)]),
    (monotone("accuracy", ["a", "b"], tolerance=0.01), "accuracy: a < b (tolerance 0.01)",
     [("b > a", -0.01, INF, [0.1, 0.1])]),
    (greater(reach("accuracy", above=0.5), "a", "b"), "first step (accuracy >= 0.5): a > b", [("a > b", 0, INF, [0, 0])]),
    (above(difference(at("accuracy", "b"), at("loss", "b")), 0), "(accuracy of b - loss of b) > 0",
     [("(accuracy of b - loss of b) > 0", 0, INF, [0.1, 0.11])]),
]  # fmt: skip


@pytest.mark.parametrize(("expectation", "text", "expected"), TABLE, ids=[text for _, text, _ in TABLE])
def test_samples_are_what_the_sentence_says(expectation: Expectation, text: str, expected: list) -> None:
    """If this failed, a verdict would be about something else than its sentence."""
    assert expectation.text == text
    samples = expectation.samples(TRIALS)
    assert [s.text for s in samples] == [row[0] for row in expected]
    for sample, (_, lower, upper, values) in zip(samples, expected, strict=True):
        assert (sample.lower, sample.upper) == pytest.approx((lower, upper))
        assert [m.value for m in sample.measurements] == pytest.approx(values)


@pytest.mark.parametrize("expectation", [row[0] for row in TABLE], ids=lambda e: e.text)
def test_round_trip(expectation: Expectation) -> None:
    """If this failed, a stored study would be judged by other expectations."""
    restored = from_plain(json.loads(json.dumps(expectation.to_plain())))
    assert restored == expectation
    assert restored.text == expectation.text


def test_plain_data_names_a_metric_by_a_string() -> None:
    """If this failed, the report would not find the metric that an expectation is about."""
    assert greater("accuracy", "b", "a").to_plain() == {
        "kind": "greater", "quantity": "accuracy", "a": "b", "b": "a", "margin": 0.0,
    }  # fmt: skip


def test_censoring_reaches_the_sample() -> None:
    """If this failed, the judge could not see that arm a never got there."""
    (sample,) = greater(reach("accuracy", above=0.5), "b", "a").samples(TRIALS)
    assert [(m.may_rise, m.may_fall) for m in sample.measurements] == [(False, True)] * 2


def test_a_ratio_of_zero_is_missing_with_a_reason() -> None:
    """If this failed, a loss of exactly zero would become an infinite logarithm."""
    trials = Trials({"a": {0: Record({"loss": 0.0})}, "b": {0: Record({"loss": 1.0})}})
    (sample,) = ratio("loss", "b", "a", above=2).samples(trials)
    assert sample.measurements[0].problem == "a gave 0, and a ratio needs values above 0"


def test_a_correlation_with_a_constant_is_missing_with_a_reason() -> None:
    """If this failed, an undefined correlation would be NaN without explanation."""
    trials = Trials({arm: {0: Record({"x": 1.0, "y": float(i)})} for i, arm in enumerate(ARMS)})
    (sample,) = correlates("x", "y", above=0.5).samples(trials)
    assert sample.measurements[0].problem == "one of the two is the same in all arms"


@settings(max_examples=50, deadline=None)
@given(st.integers(4, 8).flatmap(lambda k: st.tuples(*[st.lists(st.integers(0, 5), min_size=k, max_size=k)] * 2)))
def test_rank_correlation_is_scipys(pair: tuple[list[int], list[int]]) -> None:
    """If this failed, correlations (with ties) would not be Spearman's."""
    x, y = pair
    found = rank_correlation(x, y)
    if min(len(set(x)), len(set(y))) == 1:
        assert math.isnan(found)
    else:
        largest = perfect_correlation(len(x))
        assert found == pytest.approx(np.clip(stats.spearmanr(x, y).statistic, -largest, largest))


@pytest.mark.parametrize("arms", [4, 5, 8])
def test_a_perfect_correlation_counts_as_half_a_swap_short(arms: int) -> None:
    """If this failed, a perfect order would not rank above every imperfect one."""
    order = list(range(arms))
    swapped = [1, 0, *order[2:]]
    perfect, next_best = rank_correlation(order, order), stats.spearmanr(order, swapped).statistic
    assert perfect == pytest.approx((1 + next_best) / 2)


def test_order_of_arms_and_seeds_does_not_matter() -> None:
    """If this failed, a verdict would depend on the order in which trials came back."""
    records = {arm: {seed: TRIALS.of(seed)[arm] for seed in (1, 0)} for arm in reversed(ARMS)}
    for expectation, _, _ in TABLE:
        assert expectation.samples(Trials(records)) == expectation.samples(TRIALS)


def test_unknown_arms_are_found_before_anything_runs() -> None:
    """If this failed, a typo in an arm's name would show only after hours."""
    for expectation in [
        greater("x", "sgd", "adamm"),
        below(spread("x", ["sgd", "adamm"]), 1),
        above("x", 0, ["adamm"]),
        monotone("x", ["sgd", "adamm"]),
        equivalent("x", within=1, arms=["sgd", "adamm"]),
        ratio("x", "adamm", "sgd", above=1),
    ]:
        with pytest.raises(UnknownName, match=r"adamm.*did you mean adam\?"):
            expectation.check(["sgd", "adam"])
    below("x", 1).check(["sgd"])


@pytest.mark.parametrize("build", [
    lambda: greater("x", "a", "a"),
    lambda: greater("x", "a", "b", math.nan),
    lambda: greater(at("x", "a"), "a", "b"),
    lambda: below("x", math.inf),
    lambda: below("x", True),
    lambda: below("x", 1, "ab"),
    lambda: below("x", 1, []),
    lambda: below(at("x", "a"), 1, ["b"]),
    lambda: equivalent("x", within=0),
    lambda: equivalent("x", within=1, arms=["a"]),
    lambda: ratio("x", "a", "b"),
    lambda: ratio("x", "a", "b", above=1, below=2),
    lambda: ratio("x", "a", "b", below=0),
    lambda: ratio("x", "a", "b", above=-1),
    lambda: correlates("x", "y"),
    lambda: correlates("x", "y", above=0.5, arms=["a", "b", "c"]),
    lambda: correlates("x", "y", above=0.9, arms=["a", "b", "c", "d"]),
    lambda: monotone("x", ["a"]),
    lambda: monotone("x", ["a", "b"], tolerance=-1),
    lambda: from_plain({"kind": "greater", "quantity": "x", "a": "b"}),
    lambda: from_plain({"kind": "grater"}),
    lambda: equivalent("accuracy", within=1).samples(Trials({"a": {0: Record({"accuracy": 1.0})}})),
])  # fmt: skip
def test_nonsense_is_refused(build) -> None:
    """If this failed, an ill-formed expectation would be found out only after a study had run."""
    with pytest.raises((InvalidInput, UnknownName)):
        build()
