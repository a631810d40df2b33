"""How often probes may measure within a budget, decided before training, so that no clock enters a record.

`assay.Watch(max_overhead=...)` decides while training runs, so two runs measure at different steps. An `Experiment`
must not: here the costs are timed once, and the intervals that follow are plain data of the experiment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from assay.errors import InvalidInput
from assay.lab.experiment import Experiment

__all__ = ["affordable_intervals", "timed_intervals"]


def affordable_intervals(
    costs: Mapping[str, float], epoch_seconds: float, max_overhead: float, *, every: float = 1.0
) -> dict[str, float]:
    """Return the epochs between measurements of each probe, so that all of them stay within the budget.

    The cheapest is served first; what it leaves is divided among the others. Intervals are doubled, not stretched, so
    that a little noise in the timing changes nothing.

    Args:
        costs: Seconds of one measurement by probe.
        epoch_seconds: Seconds of training per epoch.
        max_overhead: Probing time over training time.
        every: The least number of epochs between measurements.

    Returns:
        `every` times a power of two by probe, as `Experiment(probe_every=...)` takes it. The measurement at the end of
        a trial, which is always made, is not in the account.

    Raises:
        InvalidInput: If the budget is not above 0.

    Example:
        >>> affordable_intervals({"cheap": 0.01, "dear": 5.0}, epoch_seconds=10.0, max_overhead=0.1)
        {'cheap': 1.0, 'dear': 8.0}
    """
    if not 0 < max_overhead < math.inf:
        raise InvalidInput(
            f"max_overhead must be above 0, such as 0.1 for a tenth of training time, not {max_overhead}"
        )
    left, intervals = max_overhead * epoch_seconds, {}
    for place, (name, cost) in enumerate(sorted(costs.items(), key=lambda item: item[1])):
        part = left / (len(costs) - place)
        doublings = math.ceil(math.log2(cost / (every * part))) if cost > every * part else 0
        intervals[name] = every * 2.0**doublings
        left -= cost / intervals[name]
    return {name: intervals[name] for name in costs}


def timed_intervals(experiments: Sequence[Experiment], max_overhead: float, *, every: float = 1.0) -> dict[str, float]:
    """Time the experiments' training and probes, and return intervals that every one of them can afford.

    Args:
        experiments: Arms that share their probes.
        max_overhead: Probing time over training time.
        every: The least number of epochs between measurements.
    """
    from assay.lab.training import timed

    intervals: dict[str, float] = {}
    for experiment in experiments:
        epoch_seconds, costs = timed(experiment)
        found = affordable_intervals(costs, epoch_seconds, max_overhead, every=every)
        intervals = {name: max(epochs, intervals.get(name, 0.0)) for name, epochs in found.items()}
    return intervals
