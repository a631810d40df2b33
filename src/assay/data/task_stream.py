"""SCoLe: long sequences of tasks, each with a few classes, in which classes come back.

Paper: "Challenging Common Assumptions about Catastrophic Forgetting" (arXiv:2207.04543), section on the framework; the
formula for unequal frequencies is the official code's (sampling.py).

    task t shows c distinct classes, drawn without replacement with probabilities q (even if not given)
    q_k ~ (1 - f k)^E,    f = 0.05 for 10 classes; E = 0 is even; the order of classes is shuffled

Shapes: N samples with targets (N,), K classes, T tasks of c classes each, as an int64 tensor (T, c).

Departures: indices are yielded, not images, so that any data set serves; `per_class` (ours) limits a task to fresh
random samples of its classes. Cost: a table of the N indices by class, and one permutation per task.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["Task", "TaskStream", "decreasing_frequencies", "disjoint_tasks", "recurring_tasks"]


def decreasing_frequencies(
    num_classes: int, exponent: float, factor: float = 0.05, *, generator: torch.Generator | None = None
) -> Tensor:
    """Return class probabilities q (K,) that fall off as (1 - factor k)^exponent, shuffled over classes.

    Args:
        num_classes: K, at least 1.
        exponent: E, 0 or larger; 0 makes all classes equally frequent.
        factor: f, above 0 and below 1 / (K - 1); the official code has 0.05 for 10 classes and 0.01 for 100.
        generator: Decides which class is how frequent; None is a fixed one.

    Raises:
        InvalidInput: If a number is out of its range.

    Example:
        >>> decreasing_frequencies(10, exponent=0.0).tolist() == [0.1] * 10
        True
    """
    if num_classes < 1 or exponent < 0 or not 0 < factor * max(1, num_classes - 1) < 1:
        raise InvalidInput(
            "expected num_classes >= 1, exponent >= 0 and 0 < factor < 1 / (num_classes - 1); "
            f"got {num_classes}, {exponent} and {factor}"
        )
    q = (1 - factor * torch.arange(num_classes, dtype=torch.float64)) ** exponent
    return (q / q.sum())[torch.randperm(num_classes, generator=generator or torch.Generator().manual_seed(0))]


def recurring_tasks(
    num_classes: int,
    num_tasks: int,
    classes_per_task: int = 2,
    frequencies: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the classes of each task, distinct within a task and independent between tasks.

    Args:
        num_classes: K.
        num_tasks: T, at least 1.
        classes_per_task: c, 1 to K; K makes every task show all classes.
        frequencies: Probabilities q (K,) of the first draw of a task; None is even. Later draws of a task leave out its
            earlier ones, so a class is in a task more often than q_k, and less than c q_k where q_k is large.
        generator: Decides the draw; None is a fixed one.

    Returns:
        Classes (T, c), int64.

    Raises:
        InvalidInput: If a number is out of its range, or fewer than c frequencies are above 0.

    Example:
        >>> recurring_tasks(10, 300).shape
        torch.Size([300, 2])
    """
    if not 1 <= classes_per_task <= num_classes or num_tasks < 1:
        raise InvalidInput(
            f"expected 1 to num_classes = {num_classes} classes per task and at least 1 task; "
            f"got {classes_per_task} and {num_tasks}"
        )
    q = torch.ones(num_classes) if frequencies is None else frequencies
    if q.shape != (num_classes,) or not bool((q >= 0).all() & q.isfinite().all()):
        raise InvalidInput(f"frequencies must be {num_classes} finite numbers of at least 0; got {q.tolist()}")
    if int((q > 0).sum()) < classes_per_task:
        raise InvalidInput(f"{classes_per_task} classes per task need as many frequencies above 0; got {q.tolist()}")
    generator = generator or torch.Generator().manual_seed(0)
    return torch.multinomial(q.expand(num_tasks, -1), classes_per_task, replacement=False, generator=generator)


def disjoint_tasks(num_classes: int, classes_per_task: int = 2, *, generator: torch.Generator | None = None) -> Tensor:
    """Cut the classes into tasks that share none: the classical benchmark, in which nothing recurs.

    Args:
        num_classes: K.
        classes_per_task: c, a divisor of K.
        generator: Decides which classes go together; None is a fixed one.

    Returns:
        Classes (K / c, c), int64.

    Raises:
        InvalidInput: If c does not divide K.

    Example:
        >>> disjoint_tasks(10).flatten().sort().values.tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if classes_per_task < 1 or num_classes < 1 or num_classes % classes_per_task:
        raise InvalidInput(f"{num_classes} classes cannot be cut into tasks of {classes_per_task}; choose a divisor")
    generator = generator or torch.Generator().manual_seed(0)
    return torch.randperm(num_classes, generator=generator).view(-1, classes_per_task)


class Task(NamedTuple):
    """One task: its `number` from 0, its `classes`, and the shuffled `indices` (n,) of its samples."""

    number: int
    classes: tuple[int, ...]
    indices: Tensor


class TaskStream:
    """The tasks of a sequence, one after another; each pass over the stream yields the same samples.

    In a training loop with torch's loaders, a task's `SubsetRandomSampler(task.indices.tolist())` draws from it.

    Args:
        targets: Classes (N,) of the data set that the tasks are cut from.
        tasks: Classes (T, c) of each task; see `recurring_tasks` and `disjoint_tasks`.
        per_class: Samples of each class that a task shows, drawn afresh for each task; None shows all.
        seed: Decides draw and order of the samples, not the classes.

    Raises:
        InvalidInput: If a class of the tasks has no sample, or the shapes are wrong.

    Example:
        >>> stream = TaskStream(torch.arange(60) % 3, recurring_tasks(3, 5), per_class=4)
        >>> [len(task.indices) for task in stream]
        [8, 8, 8, 8, 8]
    """

    def __init__(self, targets: Tensor, tasks: Tensor, per_class: int | None = None, seed: int = 0) -> None:
        if targets.ndim != 1 or tasks.ndim != 2 or targets.is_floating_point() or tasks.is_floating_point():
            raise InvalidInput(
                "expected classes (N,) of the samples and (T, c) of the tasks, integers; "
                f"got {targets.dtype} {tuple(targets.shape)} and {tasks.dtype} {tuple(tasks.shape)}"
            )
        if per_class is not None and per_class < 1:
            raise InvalidInput(f"per_class must be at least 1 or None for all samples; got {per_class}")
        self.members = {int(k): (targets == k).nonzero().squeeze(1) for k in tasks.unique()}
        if empty := [k for k, members in self.members.items() if not len(members)]:
            raise InvalidInput(f"class {empty[0]} is in a task, but no sample has it; leave it out of the tasks")
        self.tasks, self.per_class, self.seed = tasks, per_class, seed

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        generator = torch.Generator().manual_seed(self.seed)
        for number, classes in enumerate(self.tasks.tolist()):
            drawn = [_drawn(self.members[k], self.per_class, generator) for k in classes]
            indices = torch.cat(drawn)
            yield Task(number, tuple(classes), indices[torch.randperm(len(indices), generator=generator)])


def _drawn(members: Tensor, size: int | None, generator: torch.Generator) -> Tensor:
    return members if size is None else members[torch.randperm(len(members), generator=generator)[:size]]
