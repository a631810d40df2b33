"""Performance profiles: how often a method is how close to the fastest one, over many tasks.

Dolan and More, Mathematical Programming 91 (2002); as AlgoPerf scores training algorithms (Dahl et al.,
arXiv:2306.07179, section 4.4): with t[m, w] the time that method m takes to the target of task w, infinite where it
never gets there,

    r[m, w] = t[m, w] / min over m' of t[m', w];   rho_m(tau) = share of tasks w with r[m, w] <= tau
    score of m = 1 / (tau_max - 1) * integral of rho_m from 1 to tau_max

Departure: a task that no method solves counts against all alike; AlgoPerf's targets are set so that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from assay.errors import InvalidInput

__all__ = ["Profile", "profiles"]


@dataclass(frozen=True)
class Profile:
    """One method's performance profile.

    Args:
        ratios: Its time over the fastest method's, one per task, ascending; infinite where it missed the target.
    """

    ratios: tuple[float, ...]

    def share(self, tau: float) -> float:
        """Return the share of tasks that took at most `tau` times as long as with the fastest method."""
        return sum(ratio <= tau for ratio in self.ratios) / len(self.ratios)

    def score(self, tau_max: float = 4.0) -> float:
        """Return the mean of `share` over [1, tau_max]: 1 is the fastest on every task, 0 never within tau_max.

        Raises:
            InvalidInput: If tau_max is not above 1.
        """
        if not tau_max > 1:
            raise InvalidInput(f"tau_max must be above 1, not {tau_max}")
        # Each task adds a step of height 1 / n at its ratio, hence (tau_max - ratio) of the area.
        area = math.fsum(max(0.0, tau_max - ratio) for ratio in self.ratios)
        return area / (tau_max - 1) / len(self.ratios)


def profiles(times: Mapping[str, Mapping[str, float]]) -> dict[str, Profile]:
    """Return the performance profile of every method.

    Args:
        times: Time to the target by method and task, above 0; infinite or NaN where the target was missed.

    Raises:
        InvalidInput: If there is nothing to compare, the methods were not all run on the same tasks, or a time is not
            above 0.

    Example:
        >>> found = profiles({"a": {"x": 1.0, "y": 6.0}, "b": {"x": 2.0, "y": 3.0}})
        >>> found["a"].ratios, round(found["b"].score(), 3)
        ((1.0, 2.0), 0.833)
    """
    tasks = list(next(iter(times.values()), {}))
    if not tasks:
        raise InvalidInput("a performance profile needs at least one method and one task")
    for method, row in times.items():
        if set(row) != set(tasks):
            raise InvalidInput(f"every method needs a time on every task; {method!r} has {sorted(row)}, not {tasks}")
        if wrong := [task for task, time in row.items() if time <= 0]:
            raise InvalidInput(f"times must be above 0; {method!r} has {row[wrong[0]]} on {wrong[0]!r}")
    fastest = {task: min(_known(row[task]) for row in times.values()) for task in tasks}
    return {
        method: Profile(tuple(sorted(_ratio(_known(row[task]), fastest[task]) for task in tasks)))
        for method, row in times.items()
    }


def _known(time: float) -> float:
    return math.inf if math.isnan(time) else time


def _ratio(time: float, fastest: float) -> float:
    return time / fastest if math.isfinite(time) else math.inf
