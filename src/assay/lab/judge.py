"""From records to verdicts: a pure function that decides each expectation, and with them the study's claim.

Every sample of an expectation claims that a mean lies in a range. It *holds* if the two-sided 95 % t interval lies within the
range, it *fails* if the interval lies outside, and in both cases the exact sign-flip test must agree. An expectation holds if all its
samples hold (an intersection-union test, which needs no correction: Berger 1982) and fails if one of them
fails after Holm's adjustment within the expectation; over a study's expectations Holm's adjustment is applied to holding and to
failing separately. Whatever is not shown either way is inconclusive. docs/guides/verdicts.md has the rules in plain words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from assay.errors import InvalidInput
from assay.lab.expectations import Expectation, Sample, Scale, Trials
from assay.lab.record import Record
from assay.lab.statistics import equivalence_test, holm, sign_flip_test, t_interval, t_test

# `judge` itself is imported from this module: as a name of `assay.lab` it would be shadowed by the module.
__all__ = ["Component", "Outcome", "Verdict"]

Status = Literal["holds", "fails", "inconclusive"]
Interval = tuple[float, float]

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
    range: tuple[float | None, float | None]
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
        n: Seeds with a value.
        p_value: Of holding if every effect lies in its range, else of failing (adjusted over the components).
        adjusted_p_value: After Holm's adjustment over the study's expectations.
        sign_flip_p_value: As in `Component`.
        reason: One sentence.
        components: All of them.
    """

    text: str
    status: Status
    effect: float | None
    interval: Interval | None
    threshold: float
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


@dataclass(frozen=True)
class _Evidence:
    """What a sample says in one direction: p-values, and what stands in the way of using them."""

    p: float = 1.0
    sign_flip: float = 1.0
    obstacle: str = ""

    @property
    def shown(self) -> bool:
        return not self.obstacle and max(self.p, self.sign_flip) <= ALPHA


@dataclass(frozen=True)
class _Judged:
    """A component with its evidence in both directions."""

    component: Component
    holding: _Evidence
    failing: _Evidence
    inside: bool


def _settled(sample: Sample) -> np.ndarray:
    """Return the sample's values; constant up to rounding becomes constant, and a bound where it is one."""
    measured = [m for m in sample.measurements if not m.problem]
    values = np.array([m.value for m in measured])
    resolution = _ROUNDING * max((m.size for m in measured), default=0.0)
    if len(values) == 0 or np.ptp(values) > resolution:
        return values
    center = float(values[0])
    for bound in (sample.lower, sample.upper):
        if abs(center - bound) <= max(resolution, _ROUNDING * abs(bound)):
            center = bound
    return np.full_like(values, center)


def _sign_flips(values: np.ndarray, sample: Sample) -> tuple[float, float]:
    """Return the two-sided sign-flip p-values of lying within and of lying outside the range."""
    # A fixed seed: a verdict is a function of the records alone.
    within, outside = [0.0], [1.0]
    for bound, inward, outward in ((sample.lower, "greater", "less"), (sample.upper, "less", "greater")):
        if math.isfinite(bound):
            within.append(sign_flip_test(values, bound, inward, generator=np.random.default_rng(0)))  # type: ignore[arg-type]
            outside.append(sign_flip_test(values, bound, outward, generator=np.random.default_rng(0)))  # type: ignore[arg-type]
    return min(1.0, 2 * max(within)), min(1.0, 2 * min(outside))


def _missing(sample: Sample) -> str:
    """Return why seeds have no value, with counts; empty if all have one."""
    problems = Counter(m.problem for m in sample.measurements if m.problem)
    if not problems:
        return ""
    reasons = ", ".join(f"{problem} ({_seeds(count)})" for problem, count in sorted(problems.items()))
    return f"{sum(problems.values())} of {_seeds(len(sample.seeds))} have no value: {reasons}"


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _obstacle(sample: Sample, side: Literal["within", "outside"], below: bool) -> str:
    """Return what keeps a sample from deciding anything in one direction; empty if nothing does."""
    missing = _missing(sample)
    if missing:
        return missing
    if len(sample.seeds) < MINIMUM_SEEDS:
        return f"{_seeds(len(sample.seeds))} cannot decide, at least {MINIMUM_SEEDS} are needed"
    if side == "within":
        rising, falling = math.isfinite(sample.upper), math.isfinite(sample.lower)
    else:
        rising, falling = below, not below
    undoing = sum((m.may_rise and rising) or (m.may_fall and falling) for m in sample.measurements)
    if undoing:
        return f"in {undoing} of {_seeds(len(sample.seeds))} the level was not reached in time, which could undo the effect"
    return ""


def _judge_sample(sample: Sample) -> _Judged:
    values = _settled(sample)
    mean = float(values[0] if np.ptp(values) == 0 else values.mean()) if len(values) else math.nan
    below = mean <= sample.lower
    inside = sample.lower < mean < sample.upper
    holding = failing = _Evidence(obstacle=_missing(sample) or f"{_seeds(len(values))} cannot decide")
    interval = None
    if len(values) >= 2:
        interval = t_interval(values, 1 - ALPHA)
        outside = min(t_test(values, sample.lower, "less"), t_test(values, sample.upper, "greater"))
        flips = _sign_flips(values, sample)
        within = equivalence_test(values, sample.lower, sample.upper)
        holding = _Evidence(min(1.0, 2 * within), flips[0], _obstacle(sample, "within", below))
        failing = _Evidence(min(1.0, 2 * outside), flips[1], _obstacle(sample, "outside", below))
    return _Judged(_component(sample, values, mean, interval, holding, failing, inside), holding, failing, inside)


def _component(
    sample: Sample,
    values: np.ndarray,
    mean: float,
    interval: Interval | None,
    holding: _Evidence,
    failing: _Evidence,
    inside: bool,
) -> Component:
    scale = sample.scale
    ends = [end for end in (sample.lower, sample.upper) if math.isfinite(end)]
    threshold = min(ends, key=lambda end: (abs(mean - end) if len(values) else 0.0, -end))
    side = holding if inside else failing
    usable = interval is not None and not _missing(sample)
    settled = iter(values)
    return Component(
        text=sample.text,
        status="holds" if holding.shown else "fails" if failing.shown else "inconclusive",
        effect=_back(mean, scale) if len(values) else None,
        interval=(_back(interval[0], scale), _back(interval[1], scale)) if interval else None,
        threshold=_back(threshold, scale),
        range=tuple(_back(e, scale) if math.isfinite(e) else None for e in (sample.lower, sample.upper)),  # type: ignore[arg-type]
        seeds=sample.seeds,
        values=tuple(None if m.problem else _back(float(next(settled)), scale) for m in sample.measurements),
        p_value=side.p if usable else None,
        sign_flip_p_value=side.sign_flip if usable else None,
        censored=sum(m.may_rise or m.may_fall for m in sample.measurements),
    )


@dataclass(frozen=True)
class _Decided:
    """An expectation's components and its evidence, before the study's adjustment."""

    text: str
    judged: tuple[_Judged, ...]
    within_p: tuple[float, ...]  # Holm's adjustment of the failing p-values over the components

    @property
    def inside(self) -> bool:
        return all(j.inside for j in self.judged)

    @property
    def p_holding(self) -> float:
        return max(_usable_p(j.holding) for j in self.judged)

    @property
    def breaking(self) -> int:
        """The component that speaks most against the expectation; one whose evidence is allowed comes first."""
        failing = [j.failing for j in self.judged]
        order = [(f.sign_flip > ALPHA or bool(f.obstacle), p) for f, p in zip(failing, self.within_p, strict=True)]
        return order.index(min(order))

    @property
    def weakest(self) -> int:
        """The component that is furthest from being shown."""
        holding = [j.holding for j in self.judged]
        order = [(bool(h.obstacle), h.p, h.sign_flip) for h in holding]
        return order.index(max(order))


def _usable_p(evidence: _Evidence) -> float:
    return 1.0 if evidence.obstacle else evidence.p


def _decide(expectation: Expectation, trials: Trials) -> _Decided:
    judged = tuple(_judge_sample(sample) for sample in expectation.samples(trials))
    return _Decided(expectation.text, judged, holm([_usable_p(j.failing) for j in judged]))


def _outcome(decided: _Decided, p_holding: float, p_failing: float) -> Outcome:
    """Decide one expectation, given its p-values after the study's adjustment."""
    breaking = decided.judged[decided.breaking]
    holds = p_holding <= ALPHA and all(j.holding.shown for j in decided.judged)
    fails = p_failing <= ALPHA and breaking.failing.shown
    if fails or not (holds or decided.inside):
        deciding, adjusted, p = breaking, p_failing, decided.within_p[decided.breaking]
    else:
        deciding, adjusted, p = decided.judged[decided.weakest], p_holding, decided.p_holding
    status: Status = "holds" if holds else "fails" if fails else "inconclusive"
    component = deciding.component
    counted = component.p_value is not None
    return Outcome(
        text=decided.text,
        status=status,
        effect=component.effect,
        interval=component.interval,
        threshold=component.threshold,
        n=sum(value is not None for value in component.values),
        p_value=p if counted else None,
        adjusted_p_value=adjusted if counted else None,
        sign_flip_p_value=component.sign_flip_p_value,
        reason=_reason(status, deciding, len(decided.judged), p, adjusted),
        components=tuple(j.component for j in decided.judged),
    )


def _where(judged: _Judged) -> str:
    """Return where the interval lies, as in "the 95 % interval [0.1, 0.2] lies above 0"."""
    component, (low, high) = judged.component, judged.component.interval or (math.nan, math.nan)
    lower, upper = component.range
    interval = f"the 95 % interval [{low:.3g}, {high:.3g}]"
    crossed = [end for end in (lower, upper) if end is not None and low <= end <= high]
    if crossed:
        return f"{interval} includes {' and '.join(f'{end:g}' for end in crossed)}"
    if lower is not None and upper is not None and judged.inside:
        return f"{interval} lies between {lower:g} and {upper:g}"
    return f"{interval} lies {'above' if low > component.threshold else 'below'} {component.threshold:g}"


def _reason(status: Status, judged: _Judged, count: int, p: float, adjusted: float) -> str:
    evidence = judged.holding if judged.inside else judged.failing
    prefix = f"of {count} comparisons the one that decides is {judged.component.text}: " if count > 1 else ""
    flips = f"sign-flip p = {evidence.sign_flip:.2g}"
    if status != "inconclusive":
        against = "" if status == "holds" else ", against the claim"
        text = f"{_where(judged)}{against}, and the sign-flip test agrees ({flips})"
    elif evidence.obstacle:
        text = evidence.obstacle
    elif evidence.p > ALPHA:
        text = _where(judged)
    elif evidence.sign_flip > ALPHA:
        text = f"{_where(judged)}, but the sign-flip test does not agree ({flips})"
    else:
        text = f"{_where(judged)}, but p = {evidence.p:.2g} is {max(p, adjusted):.2g} after Holm's adjustment"
    sentence = f"{prefix}{text}."
    return sentence[0].upper() + sentence[1:]


def judge(expectations: Sequence[Expectation], trials: Mapping[str, Mapping[int, Record]]) -> Verdict:
    """Decide a study's expectations from its records.

    A pure function: the same records give the same verdict, in whatever order they come.

    Args:
        expectations: What the study expects, declared before it ran.
        trials: Arm -> seed -> record. A seed that any arm has is expected of all.

    Returns:
        The verdict. Seeds that diverged, ran out of time, or gave NaN are never dropped: they make an expectation that needs
        them inconclusive, and its reason counts them.

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
        raise InvalidInput(f"a verdict needs expectations and records, got {len(expectations)} and {len(collected.seeds)} seeds")
    for expectation in expectations:
        expectation.check(collected.arms)
    decided = [_decide(expectation, collected) for expectation in expectations]
    p_holding = holm([d.p_holding for d in decided])
    p_failing = holm([d.within_p[d.breaking] for d in decided])
    outcomes = tuple(_outcome(*args) for args in zip(decided, p_holding, p_failing, strict=True))
    statuses = [outcome.status for outcome in outcomes]
    if "fails" in statuses:
        status: Status = "fails"
    else:
        status = "holds" if set(statuses) == {"holds"} else "inconclusive"
    return Verdict(status, outcomes, len(collected.seeds))
