"""Samples: one number per seed and the range in which its mean is expected; what a verdict is decided on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from assay.lab.quantities import Measurement
from assay.lab.record import Record

Scale = Literal["linear", "log", "fisher"]


class Trials:
    """Records by arm and seed, in an order that does not depend on how they were stored.

    Args:
        records: Arm -> seed -> record.
    """

    def __init__(self, records: Mapping[str, Mapping[int, Record]]) -> None:
        self.arms = tuple(sorted(records))
        self.seeds = tuple(sorted({seed for by_seed in records.values() for seed in by_seed}))
        self._records = records

    def of(self, seed: int) -> dict[str, Record]:
        """Return one seed's records by arm; an arm without a trial at that seed is left out."""
        return {arm: self._records[arm][seed] for arm in self.arms if seed in self._records[arm]}


@dataclass(frozen=True)
class Sample:
    """One number per seed and the range in which its mean is expected.

    Args:
        text: What is claimed, such as "a > b".
        seeds: All seeds of the study.
        measurements: One per seed, on the scale of the test.
        lower: Lower end of the expected range, -inf if there is none; on the scale of the test, as `upper`.
        upper: Upper end, inf if there is none.
        scale: "linear"; "log" if the values are logarithms; "fisher" if they are Fisher's z.
    """

    text: str
    seeds: tuple[int, ...]
    measurements: tuple[Measurement, ...]
    lower: float = -math.inf
    upper: float = math.inf
    scale: Scale = "linear"


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, ties averaged."""
    smaller = (values[:, None] > values[None, :]).sum(axis=1)
    not_larger = (values[:, None] >= values[None, :]).sum(axis=1)
    return (smaller + not_larger + 1) / 2


def perfect_correlation(arms: int) -> float:
    """Return what a perfect rank correlation over that many arms counts as: half a swap of neighbours short of 1.

    Fisher's z of 1 is infinite. The next value below 1 that Spearman's correlation takes is 1 - 12 / (k^3 - k).
    """
    return 1 - 6 / (arms**3 - arms)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation, at most `perfect_correlation` in size; NaN if x or y does not vary."""
    ranks_x, ranks_y = _ranks(np.asarray(x)), _ranks(np.asarray(y))
    if np.ptp(ranks_x) == 0 or np.ptp(ranks_y) == 0:
        return math.nan
    largest = perfect_correlation(len(ranks_x))
    return float(np.clip(np.corrcoef(ranks_x, ranks_y)[0, 1], -largest, largest))
