"""Verdicts. `python tests/lab/test_judge.py` rewrites the stored verdicts of tests/golden/judge from their trials."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from assay.errors import InvalidInput, UnknownName
from assay.lab.expectations import Expectation, above, below, equivalent, from_plain, greater, less, monotone, ratio
from assay.lab.judge import Outcome, Verdict, judge
from assay.lab.quantities import reach
from assay.lab.record import Record, Series

GOLDEN = Path(__file__).parents[1] / "golden" / "judge"
CASES = sorted(path.stem for path in GOLDEN.glob("*.json"))
BY_Z = ("ratio", "correlates")  # kinds that are tested on another scale


def load(name: str) -> dict[str, Any]:
    """Return a golden case: expectations, trials, what is expected by hand, and the stored verdict."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def rejudge(case: dict[str, Any]) -> Verdict:
    """Judge a golden case's trials."""
    trials = {
        arm: {int(seed): Record.from_plain(record) for seed, record in by_seed.items()}
        for arm, by_seed in case["trials"].items()
    }
    return judge([from_plain(plain) for plain in case["expectations"]], trials)


def records(**arms: Any) -> dict[str, dict[int, Record]]:
    """Return trials with the given values of the metric x per seed."""
    return {arm: {seed: Record({"x": float(v)}) for seed, v in enumerate(values)} for arm, values in arms.items()}


def decide(expectation: Expectation, **arms: Any) -> Outcome:
    """Judge one expectation on values of the metric x per arm."""
    return judge([expectation], records(**arms)).outcomes[0]


@pytest.mark.parametrize("name", CASES)
def test_golden_case_has_the_status_worked_out_by_hand(name: str) -> None:
    """If this failed, a case that can be checked with pencil and paper would be decided otherwise."""
    case = load(name)
    verdict, expected = rejudge(case), case["expected"]
    assert verdict.status == expected["status"]
    assert [o.status for o in verdict.outcomes] == expected["outcomes"]
    for outcome, effect, reason in zip(verdict.outcomes, expected["effects"], expected["reasons"], strict=True):
        assert effect is None or outcome.effect == pytest.approx(effect, rel=1e-4, abs=1e-12)
        assert reason.lower() in outcome.reason.lower()


@pytest.mark.parametrize("name", CASES)
def test_golden_case_has_its_stored_verdict(name: str) -> None:
    """If this failed, stored trials would be judged otherwise than when their evidence was published."""
    case = load(name)
    assert approximately(rejudge(case).to_plain()) == case["verdict"]


@pytest.mark.parametrize("name", CASES)
def test_golden_numbers_are_scipys(name: str) -> None:
    """If this failed, intervals and p-values in verdicts would not be those of the named tests."""
    case = load(name)
    for plain, outcome in zip(case["expectations"], rejudge(case).outcomes, strict=True):
        for component in outcome.components:
            if plain["kind"] in BY_Z or None in component.values or len(set(component.values)) == 1:
                continue
            values = np.array(component.values, dtype=float)
            test = stats.ttest_1samp(values, component.threshold)
            interval = test.confidence_interval(0.95)
            assert component.interval == pytest.approx((interval.low, interval.high), rel=1e-9)
            assert component.p_value == pytest.approx(test.pvalue, rel=1e-9)
            flips = stats.permutation_test(
                (values - component.threshold,), np.sum, permutation_type="samples", n_resamples=np.inf
            )
            assert component.sign_flip_p_value == pytest.approx(flips.pvalue)


def approximately(plain: Any) -> Any:
    """Return plain data whose numbers compare up to the last digits, which differ between machines."""
    if isinstance(plain, dict):
        return {key: approximately(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [approximately(value) for value in plain]
    return pytest.approx(plain, rel=1e-9, abs=1e-12) if isinstance(plain, float) else plain


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name: str) -> None:
    """If this failed, a verdict read back from evidence would differ from the one written."""
    verdict = rejudge(load(name))
    text = json.dumps(verdict.to_plain(), allow_nan=False)
    assert Verdict.from_plain(json.loads(text)) == verdict


@pytest.mark.parametrize("name", CASES)
def test_order_of_trials_does_not_matter(name: str) -> None:
    """If this failed, a resumed run could come to another verdict than an uninterrupted one."""
    case = load(name)
    backwards = {
        **case,
        "trials": {arm: dict(reversed(seeds.items())) for arm, seeds in reversed(case["trials"].items())},
    }
    assert rejudge(backwards) == rejudge(case)


def test_a_two_sided_claim_is_rarely_decided_wrongly_under_the_null() -> None:
    """If this failed, arms without any difference would be told apart in more than 5 of 100 studies."""
    rng = np.random.default_rng(0)
    claim = greater("x", "a", "b")
    statuses = [decide(claim, a=rng.normal(size=6), b=rng.normal(size=6)).status for _ in range(2000)]
    holds, fails = statuses.count("holds") / 2000, statuses.count("fails") / 2000
    assert holds + fails <= 0.05
    assert max(holds, fails) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 2000)


def test_equivalence_is_rarely_claimed_at_the_margin() -> None:
    """If this failed, arms that differ by the whole margin would be called equivalent in more than 5 of 100 studies."""
    rng = np.random.default_rng(1)
    claim = equivalent("x", within=1)
    statuses = [decide(claim, a=1 + 0.3 * rng.normal(size=6), b=np.zeros(6)).status for _ in range(1500)]
    assert statuses.count("holds") / 1500 <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 1500)


def test_many_true_nulls_give_few_false_findings() -> None:
    """If this failed, a study with ten empty claims would find something more often than one with a single claim."""
    rng = np.random.default_rng(2)
    claims = [above(f"x{i}", 0) for i in range(10)]
    found = 0
    for _ in range(300):
        trials = {"a": {seed: Record({f"x{i}": rng.normal() for i in range(10)}) for seed in range(8)}}
        found += any(o.status != "inconclusive" for o in judge(claims, trials).outcomes)
    assert found / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_a_real_effect_is_found() -> None:
    """If this failed, the rules would be safe only because nothing ever holds."""
    rng = np.random.default_rng(3)
    statuses = [
        decide(greater("x", "a", "b"), a=3 + rng.normal(size=8), b=rng.normal(size=8)).status for _ in range(100)
    ]
    assert statuses.count("holds") >= 90


def test_equivalence_is_both_non_inferiorities() -> None:
    """If this failed, "equivalent" could hold where "not worse by the margin" does not: forms of a claim would disagree."""
    rng = np.random.default_rng(4)
    seen = set()
    for _ in range(200):
        arms = {"a": rng.normal(rng.uniform(-1.5, 1.5), 0.8, size=6), "b": np.zeros(6)}
        both = {decide(greater("x", "a", "b", -1), **arms).status, decide(less("x", "a", "b", -1), **arms).status}
        status = decide(equivalent("x", within=1), **arms).status
        assert (status == "holds") == (both == {"holds"})
        assert (status == "fails") == ("fails" in both)
        seen.add(status)
    assert seen == {"holds", "fails", "inconclusive"}


def test_greater_and_less_mirror_each_other() -> None:
    """If this failed, a verdict would depend on which arm is named first."""
    rng = np.random.default_rng(5)
    for _ in range(50):
        arms = {"a": rng.normal(size=6), "b": rng.normal(1, size=6)}
        one, other = decide(greater("x", "b", "a", 0.2), **arms), decide(less("x", "a", "b", 0.2), **arms)
        assert one.status == other.status
        assert one.effect == -other.effect  # type: ignore[operator]
        assert (one.p_value, one.sign_flip_p_value) == (other.p_value, other.sign_flip_p_value)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e9])
def test_units_do_not_matter(scale: float) -> None:
    """If this failed, bytes and gigabytes would be judged differently."""
    new, old = np.array([1.1, 1.3, 1.2, 1.4, 1.2, 1.1]), np.ones(6)
    outcome = decide(greater("x", "a", "b", 0.05 * scale), a=scale * new, b=scale * old)
    assert (outcome.status, outcome.p_value) == ("holds", pytest.approx(stats.ttest_1samp(new - old, 0.05).pvalue))


def test_rounding_noise_is_no_evidence() -> None:
    """If this failed, 0.91 - 0.90 > 0.01 would hold with certainty since it is 0.010000000000000009 in floating point."""
    a, b = [0.91, 0.11, 0.71, 0.91, 0.81, 0.31], [0.9, 0.1, 0.7, 0.9, 0.8, 0.3]
    assert np.ptp(np.subtract(a, b)) > 0
    outcome = decide(greater("x", "a", "b", 0.01), a=a, b=b)
    assert (outcome.status, outcome.interval, outcome.p_value) == ("inconclusive", (0.01, 0.01), 1.0)


def test_one_component_that_fails_breaks_a_claim_about_all() -> None:
    """If this failed, a missing arm could hide that another arm contradicts the claim."""
    trials = records(good=[1, 2, 1, 2, 1, 2], bad=[9, 8, 9, 8, 9, 8], gone=[1] * 6)
    trials["gone"][3] = Record({}, status="diverged")
    assert judge([below("x", 5)], trials).outcomes[0].status == "fails"
    undecided = judge([below("x", 5, ["good", "gone"])], trials).outcomes[0]
    assert undecided.status == "inconclusive"
    assert "gone diverged (1 seed)" in undecided.reason


def test_failing_among_many_components_is_adjusted() -> None:
    """If this failed, a claim about many arms would fail by chance more often than one about a single arm."""
    weak = [-0.1, -3, -0.2, -6, -2, -3]
    alone = decide(above("x", 0), a=weak)
    among = decide(above("x", 0), a=weak, b=range(1, 7), c=range(1, 7))
    assert (alone.status, among.status) == ("fails", "inconclusive")
    assert alone.p_value == among.p_value
    assert among.adjusted_p_value == pytest.approx(3 * alone.p_value)  # type: ignore[operator]
    assert "Holm" in among.reason


def test_missing_seeds_are_shown_but_decide_nothing() -> None:
    """If this failed, a value that is NaN, or a seed that one arm lacks, would be dropped in silence."""
    trials = records(a=range(10, 18), b=range(8))
    trials["a"][2] = Record({"x": math.nan})
    del trials["b"][5]
    outcome = judge([greater("x", "a", "b")], trials).outcomes[0]
    assert outcome.reason == "2 of 8 seeds have no value: a gave nan (1 seed), b has no trial (1 seed)."
    assert (outcome.n, outcome.effect, outcome.p_value, outcome.adjusted_p_value) == (6, 10.0, None, None)
    assert outcome.components[0].values == (10, 10, None, 10, 10, None, 10, 10)


def test_no_value_at_all() -> None:
    """If this failed, a study in which every trial of an arm diverged would crash instead of saying so."""
    trials = records(a=range(6), b=range(6))
    trials["a"] = {seed: Record({}, status="diverged") for seed in range(6)}
    for expectation in [greater("x", "a", "b"), ratio("x", "a", "b", above=1), equivalent("x", within=1)]:
        outcome = judge([expectation], trials).outcomes[0]
        assert (outcome.status, outcome.effect, outcome.interval, outcome.n) == ("inconclusive", None, None, 0)
        assert "a diverged (6 seeds)" in outcome.reason


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_few_seeds_are_inconclusive(seeds: int) -> None:
    """If this failed, smoke runs would pronounce verdicts."""
    outcome = decide(monotone("x", ["a", "b"]), a=[0.0] * seeds, b=np.arange(seeds) + 1)
    assert outcome.status == "inconclusive"
    assert f"{seeds} seed" in outcome.reason
    assert (outcome.interval is None) == (seeds == 1)


def test_censoring_blocks_only_the_direction_it_could_undo() -> None:
    """If this failed, time that was never measured would decide a claim, or would stop one that it can only strengthen."""

    def arm(reached: list[int]) -> dict[int, Record]:
        return {
            seed: Record({}, {"x": Series((1, 2, 3, 4, 5), tuple(float(step >= at) for step in range(1, 6)))})
            for seed, at in enumerate(reached)
        }

    trials = {"fast": arm([1, 2, 1, 2, 1, 2]), "slow": arm([4, 5, 4, 9, 9, 5]), "never": arm([9] * 6)}
    steps = reach("x", above=1)

    def status(expectation: Expectation) -> str:
        return judge([expectation], trials).status

    assert status(greater(steps, "slow", "fast")) == "holds"
    assert status(less(steps, "fast", "slow")) == "holds"
    assert status(less(steps, "slow", "fast")) == "fails"
    assert status(greater(steps, "fast", "slow")) == "fails"
    assert status(above(steps, 2, ["slow"])) == "holds"
    assert status(below(steps, 6, ["slow"])) == "inconclusive"
    assert status(equivalent(steps, within=9, arms=["fast", "slow"])) == "inconclusive"
    assert status(greater(steps, "never", "slow")) == "inconclusive"
    outcome = judge([below(steps, 6, ["slow"])], trials).outcomes[0]
    assert outcome.components[0].censored == 2
    assert "In 2 of 6 seeds a level was not reached in time" in outcome.reason


def test_more_than_32_seeds() -> None:
    """If this failed, large studies would crash or give another verdict each time they are judged."""
    rng = np.random.default_rng(6)
    arms = {"a": rng.normal(1, size=40), "b": rng.normal(size=40)}
    assert decide(greater("x", "a", "b"), **arms) == decide(greater("x", "a", "b"), **arms)
    assert decide(greater("x", "a", "b"), **arms).status == "holds"


def test_bad_input_is_one_clear_line() -> None:
    """If this failed, an empty study or a misspelt metric would end in a traceback from deep inside."""
    with pytest.raises(InvalidInput, match="expectations and records"):
        judge([], records(a=range(6)))
    with pytest.raises(InvalidInput, match="expectations and records"):
        judge([above("x", 0)], {})
    with pytest.raises(UnknownName, match=r"'xx'.*x"):
        decide(above("xx", 0), a=range(6))
    with pytest.raises(UnknownName, match="'c'"):
        decide(greater("x", "a", "c"), a=range(6), b=range(6))


if __name__ == "__main__":
    for golden in CASES:
        content = {key: value for key, value in load(golden).items() if key != "verdict"}
        content["verdict"] = rejudge(content).to_plain()
        (GOLDEN / f"{golden}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
