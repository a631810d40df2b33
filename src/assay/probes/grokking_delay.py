"""Grokking times: when a run had fitted its training data, when it generalised, and how long it took in between.

Xu, Wang, Frei, Vardi, Hu (2024, arXiv:2310.02541) prove that on XOR clusters the first is step 1, noise included, and
the second comes many steps later. A pure function of what was measured over a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from assay.errors import InvalidInput

__all__ = ["GrokkingTimes", "grokking_times"]


class GrokkingTimes(NamedTuple):
    """Steps at which a run had fitted and had generalised for good; infinite where it had not by the end."""

    fit: float
    generalise: float

    @property
    def delay(self) -> float:
        """Steps from one to the other; NaN if the run did not get to both."""
        both = math.isfinite(self.fit) and math.isfinite(self.generalise)
        return self.generalise - self.fit if both else math.nan


def grokking_times(
    steps: Sequence[float],
    seen: Sequence[float],
    held_out: Sequence[float],
    *,
    fit: float = 0.995,
    generalise: float = 0.95,
) -> GrokkingTimes:
    """Return the first measured steps from which on accuracy stays at or above a level.

    Staying there matters: a classifier that passes the level by chance and falls back has not generalised.

    Args:
        steps: When accuracies were measured, ascending.
        seen: Accuracy on the training data, 0 to 1, as many; for example "accuracy_seen" of `LinearAgreement`.
        held_out: Accuracy on held-out data.
        fit: The level that counts as fitted.
        generalise: The level that counts as generalising.

    Raises:
        InvalidInput: If the lengths differ, nothing was measured, or the steps do not ascend.

    Example:
        >>> grokking_times([0, 1, 2, 3], [0.5, 1.0, 1.0, 1.0], [0.5, 0.5, 0.9, 0.97])
        GrokkingTimes(fit=1.0, generalise=3.0)
    """
    if not len(steps) == len(seen) == len(held_out) or len(steps) == 0:
        raise InvalidInput(
            f"expected one accuracy per step and at least one step; got {len(steps)} steps, {len(seen)} and "
            f"{len(held_out)} accuracies"
        )
    if any(a >= b for a, b in pairwise(steps)):
        raise InvalidInput("steps must ascend, each measured once")
    return GrokkingTimes(_first_to_stay(steps, seen, fit), _first_to_stay(steps, held_out, generalise))


def _first_to_stay(steps: Sequence[float], values: Sequence[float], level: float) -> float:
    first = math.inf
    for step, value in zip(reversed(steps), reversed(values), strict=True):
        if not value >= level:  # a NaN is no accuracy that counts
            break
        first = float(step)
    return first
