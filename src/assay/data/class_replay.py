"""Replay of classes: a small memory per class, and two rules which of them to add to a task.

Paper: "Challenging Common Assumptions about Catastrophic Forgetting" (arXiv:2207.04543), its frequency replay; details
are the official code's (replay.py). With n_k the tasks so far that showed or replayed class k, of t in all:

    frequency rule    the rarest classes first, up to as many as the task has, which are not in it, have n_k >= trigger
                      and low < n_k / t <= high
    random rule       as many classes, drawn from those seen and not in the task
    memory            per_class samples; each time k is shown, max(per_class / (n_k + 1), per_class / 20) are renewed

So rare classes come more often, up to the frequency `high`, and costs are spent on no other class.

Departures: indices are remembered, not images. The code's random rule tosses a coin for each class to be replayed; here
it replays always, as the frequency rule does wherever it finds a class. Cost: per_class integers for each class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["FrequencyReplay", "RandomReplay"]


class _Memory:
    """Indices of samples by class, and in how many tasks each class was shown or replayed."""

    def __init__(self, per_class: int, generator: torch.Generator | None) -> None:
        if per_class < 1:
            raise InvalidInput(f"per_class must be at least 1; got {per_class}")
        self.per_class = per_class
        self.generator = generator or torch.Generator().manual_seed(0)
        self.memory: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}
        self.num_tasks = 0

    def samples(self, classes: Sequence[int]) -> Tensor:
        """Return the remembered indices (n,) of some classes."""
        return torch.cat([torch.empty(0, dtype=torch.long), *(self.memory[k] for k in classes)])

    def observe(self, indices: Tensor, targets: Tensor, replayed: Sequence[int] = ()) -> None:
        """Remember a task after it was trained on.

        Args:
            indices: The task's samples (n,), without the replayed ones.
            targets: Their classes (n,).
            replayed: The classes that were replayed beside them, which count as shown.

        Raises:
            InvalidInput: If there is not one target per index.
        """
        if indices.ndim != 1 or indices.shape != targets.shape:
            raise InvalidInput(
                f"expected one target per index (n,); got {tuple(targets.shape)}, {tuple(indices.shape)}"
            )
        shown = targets.unique().tolist()
        for k in shown:
            self._renew(k, indices[targets == k])
        self.num_tasks += 1
        for k in {*shown, *replayed}:
            self.counts[k] = self.counts.get(k, 0) + 1

    def _renew(self, k: int, fresh: Tensor) -> None:
        old = self._shuffled(self.memory.get(k, fresh[:0]))
        seen = self.counts.get(k, 0)
        size = max(self.per_class // (seen + 1), self.per_class // 20, 1)
        self.memory[k] = torch.cat([self._shuffled(fresh)[:size], old])[: self.per_class]

    def _shuffled(self, indices: Tensor) -> Tensor:
        return indices[torch.randperm(len(indices), generator=self.generator)]


class FrequencyReplay(_Memory):
    """Replays classes that are rare, but not too rare to count.

    In a loop over tasks: `replayed = replay.choose(task.classes)`, train on `task.indices` and
    `replay.samples(replayed)`, then `replay.observe(task.indices, targets[task.indices], replayed)`.

    Args:
        per_class: Samples remembered per class.
        low: Frequency, as a share of tasks, at or below which a class is left alone.
        high: Frequency above which a class needs no replay.
        trigger: Tasks in which a class must have been before it is replayed.
        generator: Decides which samples are remembered; None is a fixed one.

    Raises:
        InvalidInput: If `low` and `high` are no ascending shares, or another number is below 1.

    Example:
        >>> replay = FrequencyReplay(per_class=2, high=0.5, trigger=1)
        >>> for k in (0, 1, 1):
        ...     replay.observe(torch.tensor([k]), torch.tensor([k]))
        >>> replay.choose([1]), replay.samples([0]).tolist()
        ([0], [0])
    """

    def __init__(
        self,
        per_class: int = 200,
        low: float = 0.01,
        high: float = 0.1,
        trigger: int = 3,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(per_class, generator)
        if not 0 <= low < high <= 1 or trigger < 1:
            raise InvalidInput(f"expected 0 <= low < high <= 1 and trigger >= 1; got {low}, {high} and {trigger}")
        self.low, self.high, self.trigger = low, high, trigger

    def choose(self, classes: Sequence[int]) -> list[int]:
        """Return the classes to replay beside those of the coming task, the rarest first."""
        ranked = sorted((count, k) for k, count in self.counts.items() if k not in classes and count >= self.trigger)
        return [k for count, k in ranked if self.low < count / self.num_tasks <= self.high][: len(classes)]


class RandomReplay(_Memory):
    """Replays random classes among those seen: the control of `FrequencyReplay`, with the same interface.

    Args:
        per_class: Samples remembered per class.
        generator: Decides which samples are remembered and which classes are replayed; None is a fixed one.

    Raises:
        InvalidInput: If `per_class` is below 1.

    Example:
        >>> replay = RandomReplay(per_class=2)
        >>> replay.observe(torch.tensor([4, 7]), torch.tensor([0, 1]))
        >>> replay.choose([1, 2])
        [0]
    """

    def __init__(self, per_class: int = 200, *, generator: torch.Generator | None = None) -> None:
        super().__init__(per_class, generator)

    def choose(self, classes: Sequence[int]) -> list[int]:
        """Return as many classes as the coming task has, or fewer where fewer were seen."""
        others = [k for k in sorted(self.counts) if k not in classes]
        order = torch.randperm(len(others), generator=self.generator)[: len(classes)]
        return [others[i] for i in order.tolist()]
