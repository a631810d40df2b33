"""From records to verdicts: a pure function that decides each expectation, and with them the study's claim.

Every sample of an expectation claims that a mean lies in a range. It *holds* if the two-sided 95 % t interval lies
within the range, it *fails* if the interval lies outside, and in both cases the exact sign-flip test must agree. An
expectation holds if all its samples hold (an intersection-union test, which needs no correction: Berger 1982) and fails
if one of them fails after Holm's adjustment within the expectation; over a study's expectations Holm's adjustment is
applied to holding and to failing separately. Whatever is not shown either way is inconclusive. docs/guides/verdicts.md
has the rules in plain words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from assay.errors import InvalidInput
from assay.lab._samples import Sample, Scale, Trials
from assay.lab.expectations import Expectation
from assay.lab.record import Record
from assay.lab.statistics import Alternative, equivalence_test, holm, sign_flip_test, t_interval, t_test

# `judge` itself is imported from this module: as a name of `assay.lab` it would be shadowed by the module.
__all__ = ["Component", "Outcome", "Verdict"]

Status = Literal["holds", "fails", "inconclusive"]
Interval = tuple[float, float]
Ends = tuple[float | None, float | None]

ALPHA = 0.05
MINIMUM_SEEDS = 6
METHOD = (
    "two-sided 95 % t interval over paired seeds (the null: mean at the threshold) and exact sign-flip test, both at "
    "alpha = 0.05; Holm's adjustment over expectations, and within an expectation for failing; at least 6 seeds"
)
# Values that agree to 12 digits of their operands differ by rounding only.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Component:
    """One sample as judged, on the scale of its values: ratios as ratios, correlations as correlations.

    Args:
        text: What is claimed.
        status: What this sample alone shows, before Holm's adjustments.
        effect: The mean (of ratios the geometric mean); None without a usable seed.
        interval: 95 % t interval of the mean; None with fewer than 2 usable seeds.
        threshold: The end of the range that the effect is nearest to.
        range: Where the mean is expected; None stands for an open end.
        seeds: All seeds of the study.
        values: One per seed; None where there is none.
        p_value: Two-sided t test against the threshold, for holding if the effect lies in the range, else for failing.
        sign_flip_p_value: The exact sign-flip test for the same.
        censored: In how many seeds a series had not reached its level when the trial ended.
    """

    text: str
    status: Status
    effect: float | None
    interval: Interval | None
    threshold: float
    range: Ends
    seeds: tuple[int, ...]
    values: tuple[float | None, ...]
    p_value: float | None
    sign_flip_p_value: float | None
    censored: int


@dataclass(frozen=True)
class Outcome:
    """One expectation as decided; effect, interval and threshold are those of the component that decides it.

    Args:
        text: The expectation in words.
        status: "holds", "fails" or "inconclusive".
        effect: As in `Component`.
        interval: As in `Component`; not adjusted for several expectations.
        threshold: As in `Component`.
        range: As in `Component`.
        n: Seeds with a value.
        p_value: As in `Component`.
        adjusted_p_value: The expectation's p-value after Holm's adjustments; None where no p-value may count.
        sign_flip_p_value: As in `Component`.
        reason: One sentence.
        components: All of them.
    """

    text: str
    status: Status
    effect: float | None
    interval: Interval | None
    threshold: float
    range: Ends
    n: int
    p_value: float | None
    adjusted_p_value: float | None
    sign_flip_p_value: float | None
    reason: str
    components: tuple[Component, ...]


@dataclass(frozen=True)
class Verdict:
    """A study's verdict: it holds if all expectations hold, and fails if one of them fails."""

    status: Status
    outcomes: tuple[Outcome, ...]
    seeds: int
    alpha: float = ALPHA
    method: str = METHOD

    def to_plain(self) -> dict[str, Any]:
        """Return JSON-ready data; `from_plain` restores an equal verdict."""
        plain: dict[str, Any] = _listed(asdict(self))
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Verdict:
        """Restore a verdict from `to_plain`'s data."""
        outcomes = []
        for outcome in plain["outcomes"]:
            components = tuple(Component(**_tupled(component)) for component in outcome["components"])
            outcomes.append(Outcome(**{**_tupled(outcome), "components": components}))
        return cls(**{**plain, "outcomes": tuple(outcomes)})


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _tupled(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}


def _back(value: float, scale: Scale) -> float:
    """Return a value of the test's scale on the scale of the quantity."""
    if scale == "log":
        return float(np.exp(np.clip(value, -700, 700)))
    return math.tanh(value) if scale == "fisher" else value


def _end(bound: float, scale: Scale) -> float | None:
    """Return an end of a range as the study wrote it: there and back through a logarithm costs the last digits."""
    return float(f"{_back(bound, scale):.12g}") if math.isfinite(bound) else None


@dataclass(frozen=True)
class _Evidence:
    """What a sample says in one direction.

    Args:
        p: Two-sided t test.
        sign_flip: Two-sided sign-flip test.
        obstacle: What keeps both from counting, whatever they say; empty if nothing does.
    """

    p: float
    sign_flip: float
    obstacle: str

    @property
    def shown(self) -> bool:
        return not self.obstacle and max(self.p, self.sign_flip) <= ALPHA

    @property
    def counted_p(self) -> float:
        return 1.0 if self.obstacle else self.p


@dataclass(frozen=True)
class _Judged:
    """A component with its evidence in both directions."""

    component: Component
    holding: _Evidence
    failing: _Evidence
    inside: bool

    @property
    def leaning(self) -> _Evidence:
        """The evidence in the direction of the effect."""
        return self.holding if self.inside else self.failing


def _settled(sample: Sample) -> np.ndarray:
    """Return the sample's values; constant up to rounding becomes constant, and a bound where it is one."""
    measured = [m for m in sample.measurements if not m.problem]
    values = np.array([m.value for m in measured])
    resolution = _ROUNDING * max((m.size for m in measured), default=0.0)
    if len(values) == 0 or np.ptp(values) > resolution:
        return values
    center = float(values[0])
    for bound in (sample.lower, sample.upper):
        if abs(center - bound) <= resolution:
            center = bound
    return np.full_like(values, center)


def _t_tests(values: np.ndarray, sample: Sample) -> tuple[float, float]:
    """Return the two-sided t tests' p-values of lying within and of lying outside the range."""
    outside = min(t_test(values, sample.lower, "less"), t_test(values, sample.upper, "greater"))
    return min(1.0, 2 * equivalence_test(values, sample.lower, sample.upper)), min(1.0, 2 * outside)


def _sign_flips(values: np.ndarray, sample: Sample) -> tuple[float, float]:
    """Return the same of the sign-flip test."""
    sides: tuple[tuple[float, Alternative, Alternative], ...] = (
        (sample.lower, "greater", "less"),
        (sample.upper, "less", "greater"),
    )
    within, outside = [], []
    for bound, inward, outward in sides:
        if math.isfinite(bound):
            # The generator, used above 32 seeds only, is fixed: a verdict is a function of the records alone.
            within.append(sign_flip_test(values, bound, inward, generator=np.random.default_rng(0)))
            outside.append(sign_flip_test(values, bound, outward, generator=np.random.default_rng(0)))
    return min(1.0, 2 * max(within)), min(1.0, 2 * min(outside))


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _missing(sample: Sample) -> str:
    """Return why seeds have no value, with counts; empty if all have one."""
    problems = Counter(m.problem for m in sample.measurements if m.problem)
    if not problems:
        return ""
    reasons = ", ".join(f"{problem} ({_seeds(count)})" for problem, count in sorted(problems.items()))
    return f"{sum(problems.values())} of {_seeds(len(sample.seeds))} have no value: {reasons}"


def _too_few(sample: Sample) -> str:
    if len(sample.seeds) >= MINIMUM_SEEDS:
        return ""
    return f"{_seeds(len(sample.seeds))} cannot decide: a verdict needs at least {MINIMUM_SEEDS}"


def _censored(sample: Sample, *, rising: bool, falling: bool) -> str:
    """Return how many seeds are censored so that their true values could undo the effect by rising or falling."""
    undoing = sum((m.may_rise and rising) or (m.may_fall and falling) for m in sample.measurements)
    if not undoing:
        return ""
    return f"in {undoing} of {_seeds(len(sample.seeds))} a level was not reached in time, which could undo the effect"


def _judge_sample(sample: Sample) -> _Judged:
    values = _settled(sample)
    mean = math.nan if len(values) == 0 else float(values[0] if np.ptp(values) == 0 else values.mean())
    within, outside = ((1.0, 1.0), (1.0, 1.0))
    if len(values) >= 2:
        within, outside = zip(_t_tests(values, sample), _sign_flips(values, sample), strict=True)
    common = _missing(sample) or _too_few(sample)
    inward = _censored(sample, rising=math.isfinite(sample.upper), falling=math.isfinite(sample.lower))
    outward = _censored(sample, rising=mean <= sample.lower, falling=mean >= sample.upper)
    holding, failing = _Evidence(*within, common or inward), _Evidence(*outside, common or outward)
    inside = sample.lower < mean < sample.upper
    return _Judged(_component(sample, values, mean, holding, failing, inside), holding, failing, inside)


def _component(
    sample: Sample, values: np.ndarray, mean: float, holding: _Evidence, failing: _Evidence, inside: bool
) -> Component:
    ends = _end(sample.lower, sample.scale), _end(sample.upper, sample.scale)
    known = [end for end in reversed(ends) if end is not None]
    threshold = min(known, key=lambda end: abs(_back(mean, sample.scale) - end))
    low, high = t_interval(values, 1 - ALPHA) if len(values) >= 2 else (math.nan, math.nan)
    leaning = holding if inside else failing
    counts = len(values) >= 2 and not _missing(sample)
    settled = iter(values)
    return Component(
        text=sample.text,
        status="holds" if holding.shown else "fails" if failing.shown else "inconclusive",
        effect=_back(mean, sample.scale) if len(values) else None,
        interval=(_back(low, sample.scale), _back(high, sample.scale)) if len(values) >= 2 else None,
        threshold=threshold,
        range=ends,
        seeds=sample.seeds,
        values=tuple(None if m.problem else _back(float(next(settled)), sample.scale) for m in sample.measurements),
        p_value=leaning.p if counts else None,
        sign_flip_p_value=leaning.sign_flip if counts else None,
        censored=sum(m.may_rise or m.may_fall for m in sample.measurements),
    )


@dataclass(frozen=True)
class _Decided:
    """An expectation's evidence before the study's adjustment."""

    text: str
    judged: tuple[_Judged, ...]
    failing_p: tuple[float, ...]  # after Holm's adjustment over the components

    @property
    def holding_p(self) -> float:
        """All components must hold: the largest p-value is the claim's, without correction."""
        return max(j.holding.counted_p for j in self.judged)

    @property
    def weakest(self) -> int:
        """The component that is furthest from holding."""
        order = [(bool(j.leaning.obstacle), not j.inside, j.holding.p, j.holding.sign_flip) for j in self.judged]
        return order.index(max(order))

    @property
    def breaking(self) -> int:
        """The component that speaks most against the claim; one that the sign-flip test confirms comes first."""
        order = [(not j.failing.shown, p) for j, p in zip(self.judged, self.failing_p, strict=True)]
        return order.index(min(order))


def _decide(expectation: Expectation, trials: Trials) -> _Decided:
    judged = tuple(_judge_sample(sample) for sample in expectation.samples(trials))
    return _Decided(expectation.text, judged, holm([j.failing.counted_p for j in judged]))


def _outcome(decided: _Decided, holding_p: float, failing_p: float) -> Outcome:
    """Decide one expectation, given its p-values after the study's adjustment."""
    breaking, weakest = decided.judged[decided.breaking], decided.judged[decided.weakest]
    holds = holding_p <= ALPHA and all(j.holding.shown for j in decided.judged)
    fails = failing_p <= ALPHA and breaking.failing.shown
    status: Status = "holds" if holds else "fails" if fails else "inconclusive"
    # What is shown against the claim comes first, then what keeps it from being decided at all.
    against = fails or not (weakest.inside or weakest.leaning.obstacle)
    deciding = breaking if against else weakest
    adjusted = failing_p if against or not deciding.inside else holding_p
    component = deciding.component
    return Outcome(
        text=decided.text,
        status=status,
        effect=component.effect,
        interval=component.interval,
        threshold=component.threshold,
        range=component.range,
        n=sum(value is not None for value in component.values),
        p_value=component.p_value,
        adjusted_p_value=None if deciding.leaning.obstacle else adjusted,
        sign_flip_p_value=component.sign_flip_p_value,
        reason=_reason(status, deciding, len(decided.judged), adjusted),
        components=tuple(j.component for j in decided.judged),
    )


def _where(component: Component, inside: bool) -> str:
    """Say where the interval lies, as in "the 95 % interval [0.1, 0.2] lies above 0"."""
    low, high = component.interval or (math.nan, math.nan)
    ends = [end for end in component.range if end is not None]
    interval = f"the 95 % interval [{low:.4g}, {high:.4g}]"
    crossed = [end for end in ends if low <= end <= high]
    if crossed and low == high:
        return f"every seed gives {low:g}, exactly the threshold"
    if crossed:
        return f"{interval} includes {' and '.join(f'{end:g}' for end in crossed)}"
    if inside and len(ends) == 2:
        return f"{interval} lies between {ends[0]:g} and {ends[1]:g}"
    return f"{interval} lies {'above' if low > component.threshold else 'below'} {component.threshold:g}"


def _reason(status: Status, judged: _Judged, count: int, adjusted: float) -> str:
    evidence, where = judged.leaning, _where(judged.component, judged.inside)
    flips = f"sign-flip p = {evidence.sign_flip:.2g}"
    if status != "inconclusive":
        against = "" if status == "holds" else ", against the claim"
        text = f"{where}{against}, and the sign-flip test agrees ({flips})"
    elif evidence.obstacle:
        text = evidence.obstacle
    elif evidence.p > ALPHA:
        text = where
    elif evidence.sign_flip > ALPHA:
        text = f"{where}, but the sign-flip test does not agree ({flips})"
    else:
        text = f"{where}, but p = {evidence.p:.2g} becomes {adjusted:.2g} by Holm's adjustment for several claims"
    text = f"the weakest of {count} comparisons is {judged.component.text}: {text}" if count > 1 else text
    return f"{text[0].upper()}{text[1:]}."


def judge(expectations: Sequence[Expectation], trials: Mapping[str, Mapping[int, Record]]) -> Verdict:
    """Decide a study's expectations from its records.

    A pure function: the same records give the same verdict, in whatever order they come.

    Args:
        expectations: What the study expects, declared before it ran.
        trials: Arm -> seed -> record. A seed that any arm has is expected of all.

    Returns:
        The verdict. Seeds that diverged, ran out of time, or gave NaN are never dropped: they make an expectation that
        needs them inconclusive, and its reason counts them.

    Raises:
        InvalidInput: Without expectations or records.
        UnknownName: If an expectation names an arm, metric or series that is not there.

    Example:
        >>> from assay.lab.expectations import above
        >>> records = {"a": {seed: Record({"accuracy": 0.9 + 0.001 * seed}) for seed in range(6)}}
        >>> judge([above("accuracy", 0.8)], records).status
        'holds'
    """
    collected = Trials(trials)
    if not expectations or not collected.seeds:
        raise InvalidInput(
            f"a verdict needs expectations and records, got {len(expectations)} and {len(collected.seeds)} seeds"
        )
    for expectation in expectations:
        expectation.check(collected.arms)
    decided = [_decide(expectation, collected) for expectation in expectations]
    holding_p = holm([d.holding_p for d in decided])
    failing_p = holm([d.failing_p[d.breaking] for d in decided])
    outcomes = tuple(_outcome(*row) for row in zip(decided, holding_p, failing_p, strict=True))
    statuses = [outcome.status for outcome in outcomes]
    if "fails" in statuses:
        status: Status = "fails"
    else:
        status = "holds" if set(statuses) == {"holds"} else "inconclusive"
    return Verdict(status, outcomes, len(collected.seeds))
