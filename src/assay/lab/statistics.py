"""The tests behind a verdict: t interval and t test, exact sign-flip test, equivalence by two one-sided tests, Holm.

Sources: Student (1908) for the t interval; Fisher (1935, section 21) and Pitman (1937) for the sign-flip test;
Schuirmann (1987) for two one-sided tests; Holm (1979) for the adjustment. A sample is one number per seed, mostly a
difference between two arms that share the seed; shape (n,), n >= 2, no NaN. A sample that does not vary is handled
exactly: its interval is one point and its p-value 0 or 1. The sign-flip test is exact up to 32 seeds: with the sums of
one half of the seeds sorted, counting the 2^n sign patterns costs O(n 2^(n/2)) time and O(2^(n/2)) memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import special

from assay.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Alternative",
    "equivalence_test",
    "holm",
    "paired_t_interval",
    "sign_flip_test",
    "t_interval",
    "t_test",
]

Alternative = Literal["two-sided", "greater", "less"]

EXACT_SIGN_FLIPS = 32
# Sums of up to 32 numbers in another order differ by a few units in the last place: that is a tie, not a difference.
_TIE = 1e-12


def _checked(sample: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(sample, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InvalidInput(f"a sample needs at least 2 values in one dimension, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise InvalidInput(f"a sample must be finite, got {np.count_nonzero(~np.isfinite(values))} NaN or infinite")
    return values


def _checked_alternative(alternative: str) -> None:
    if alternative not in ("two-sided", "greater", "less"):
        raise InvalidInput(f"alternative must be 'two-sided', 'greater' or 'less', not {alternative!r}")


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean and its standard error; both exact where the sample does not vary."""
    width = float(np.ptp(values))
    if width == 0:
        return float(values[0]), 0.0
    # In units of the width, since squares of 1e-200 or 1e200 are 0 or infinite.
    deviation = width * float((values / width).std(ddof=1))
    return float(values.mean()), deviation / math.sqrt(len(values))


def t_interval(sample: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Return Student's t interval of the mean.

    Args:
        sample: Values, shape (n,), n >= 2.
        confidence: Probability that the interval covers the mean, in (0, 1).

    Returns:
        Lower and upper end; equal if the sample does not vary.

    Raises:
        InvalidInput: On fewer than 2 values, NaN or infinity, or a confidence outside (0, 1).

    Example:
        >>> low, high = t_interval([1.0, 2.0, 3.0])
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    if not 0 < confidence < 1:
        raise InvalidInput(f"confidence must lie in (0, 1), not {confidence}")
    values = _checked(sample)
    mean, error = _mean_and_error(values)
    half = float(special.stdtrit(len(values) - 1, (1 + confidence) / 2)) * error
    return mean - half, mean + half


def paired_t_interval(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Return the t interval of the mean of `first - second`, paired by position.

    Raises:
        InvalidInput: As `t_interval`, and if the shapes differ.
    """
    a, b = _checked(first), _checked(second)
    if a.shape != b.shape:
        raise InvalidInput(f"pairs need two samples of the same length, got {len(a)} and {len(b)}")
    return t_interval(a - b, confidence)


def t_test(sample: ArrayLike, mean: float = 0.0, alternative: Alternative = "two-sided") -> float:
    """Return the p-value of the one-sample t test.

    Args:
        sample: Values, shape (n,), n >= 2.
        mean: The mean under the null hypothesis; infinite means are allowed and give 0 or 1.
        alternative: "two-sided", or "greater" or "less" for the side on which the true mean is claimed to lie.

    Raises:
        InvalidInput: On fewer than 2 values, NaN or infinity in the sample, a NaN mean, or an unknown alternative.

    Example:
        >>> round(t_test([1.0, 2.0, 3.0]), 4)
        0.0742
    """
    _checked_alternative(alternative)
    if math.isnan(mean):
        raise InvalidInput("the mean under the null hypothesis must not be NaN")
    values = _checked(sample)
    center, error = _mean_and_error(values)
    distance = center - mean
    if error == 0 and distance == 0:
        return 1.0
    t = distance / error if error > 0 else math.copysign(math.inf, distance)
    if alternative == "two-sided":
        return 2 * float(special.stdtr(len(values) - 1, -abs(t)))
    return float(special.stdtr(len(values) - 1, -t if alternative == "greater" else t))


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of the values under all 2^n sign patterns."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _share_at_least(values: NDArray[np.float64], level: float) -> float:
    """Return the exact share of sign patterns whose sum is at least `level`."""
    half = len(values) // 2
    left, right = _signed_sums(values[:half]), np.sort(_signed_sums(values[half:]))
    below = np.searchsorted(right, level - left, side="left")
    return 1 - int(below.sum()) / 2 ** len(values)


def _drawn_share_at_least(
    values: NDArray[np.float64], level: float, generator: np.random.Generator, draws: int
) -> float:
    """Estimate the share from drawn patterns; counting the observed one keeps it valid (Phipson, Smyth 2010)."""
    signs = generator.integers(0, 2, size=(draws, len(values)), dtype=np.int8) * 2.0 - 1.0
    return (1 + int(np.count_nonzero(signs @ values >= level))) / (1 + draws)


def sign_flip_test(
    sample: ArrayLike,
    center: float = 0.0,
    alternative: Alternative = "two-sided",
    *,
    generator: np.random.Generator | None = None,
    draws: int = 19_999,
) -> float:
    """Return the p-value of the sign-flip test of the mean, exact where values are symmetric about `center`.

    All sign patterns count up to n = 32. Its smallest two-sided p-value is 2 / 2^n: 0.031 at n = 6, 0.063 at n = 5.

    Args:
        sample: Values, shape (n,), n >= 2.
        center: The centre of symmetry under the null hypothesis.
        alternative: "two-sided", "greater" or "less".
        generator: Draws the patterns; needed above n = 32 and unused below.
        draws: How many patterns above n = 32.

    Raises:
        InvalidInput: On fewer than 2 values, NaN or infinity, an unknown alternative, or n > 32 without a generator.

    Example:
        >>> sign_flip_test([0.2, 0.1, 0.3, 0.2, 0.1, 0.4])
        0.03125
    """
    _checked_alternative(alternative)
    residuals = _checked(sample) - center
    if not np.isfinite(residuals).all():
        raise InvalidInput(f"center must be finite, not {center}")
    total = float(residuals.sum()) * (-1 if alternative == "less" else 1)
    if alternative == "two-sided":
        total = abs(total)
    level = total - _TIE * float(np.abs(residuals).sum())
    if alternative == "two-sided" and level <= 0:
        return 1.0
    if len(residuals) <= EXACT_SIGN_FLIPS:
        share = _share_at_least(residuals, level)
    elif generator is not None:
        share = _drawn_share_at_least(residuals, level, generator, draws)
    else:
        raise InvalidInput(f"above {EXACT_SIGN_FLIPS} values the sign-flip test draws patterns: pass a numpy Generator")
    # Patterns come in pairs of opposite sums, so that the two tails are equally likely.
    return min(1.0, 2 * share) if alternative == "two-sided" else share


def equivalence_test(sample: ArrayLike, lower: float, upper: float) -> float:
    """Return the p-value of two one-sided t tests that the mean lies within (lower, upper).

    An infinite end drops out, which leaves the one-sided t test against the other.

    Raises:
        InvalidInput: As `t_test`, and unless lower < upper.

    Example:
        >>> equivalence_test([0.01, -0.01, 0.02, -0.02, 0.0, 0.0], -0.05, 0.05) < 0.001
        True
    """
    if not lower < upper:
        raise InvalidInput(f"the range of equivalence needs lower < upper, got ({lower}, {upper})")
    return max(t_test(sample, lower, "greater"), t_test(sample, upper, "less"))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return Holm's adjusted p-values, in the order given.

    Rejecting where the adjusted p-value is at most alpha makes any false rejection in the family at most alpha likely,
    however the tests depend on each other.

    Raises:
        InvalidInput: If a p-value is NaN or outside [0, 1].

    Example:
        >>> holm([0.25, 0.125])
        (0.25, 0.25)
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InvalidInput(f"p-values must be a list of numbers in [0, 1], got {p_values!r}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return tuple(float(value) for value in adjusted)
