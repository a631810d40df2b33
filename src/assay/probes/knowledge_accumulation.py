"""Knowledge accumulation: over a long sequence of tasks, what is gained on all classes, and forgotten at each step?

Paper: "Challenging Common Assumptions about Catastrophic Forgetting" (arXiv:2207.04543), which draws accuracy over all
classes after each task. With r_k(t) the share of class k's samples that are recognised after task t of classes C_t:

    accuracy(t) = mean_k r_k(t)
    learned(t)  = mean_{k in C_t} [r_k(t) - r_k(t - 1)],    forgotten(t) = mean_{k not in C_t} [r_k(t - 1) - r_k(t)]

A network forgets (forgotten > 0 on average) and still accumulates (accuracy rises) if it learns more than it forgets.

Shapes: T tasks of c classes, K classes; recalls (T + 1, K) from before the first task to after the last.

Departures: the two means are ours; the paper shows curves. Accuracy is the mean over classes, the paper's where test
classes are even. Cost: one forward pass per measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes.class_statistics import check_labels
from assay.probes.view import View

__all__ = ["Accumulation", "KnowledgeAccumulation", "accumulation", "class_recalls"]

_KEY = "class_accuracy"


def class_recalls(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the share of each class's samples that are recognised, (K,) float64; NaN for a class without samples.

    Args:
        scores: Class scores (N, K).
        targets: Classes (N,).

    Raises:
        InvalidInput: If shapes, types or labels are wrong.

    Example:
        >>> class_recalls(torch.eye(3), torch.tensor([0, 1, 1])).tolist()
        [1.0, 0.5, nan]
    """
    check_labels(scores, targets, scores.shape[1])
    hits = (scores.argmax(dim=1) == targets).double()
    K = scores.shape[1]
    return torch.bincount(targets, weights=hits, minlength=K) / torch.bincount(targets, minlength=K)


class Accumulation(NamedTuple):
    """Accuracy over all classes in the first and last tasks, its mean slope, and what a task adds and takes.

    `early` and `late` are means over a window of tasks, `gain` is their difference, `slope` the least-squares line's in
    accuracy per task, `learned` the mean gain on a task's own classes, `forgotten` the mean loss on all others.
    """

    early: float
    late: float
    gain: float
    slope: float
    learned: float
    forgotten: float


def accumulation(recalls: Tensor, tasks: Tensor, first: int = 10, last: int = 20) -> Accumulation:
    """Summarise how recalls went over a sequence of tasks.

    Args:
        recalls: (T + 1, K), before the first and after each task; see `class_recalls`.
        tasks: Classes (T, c) of each task.
        first: Tasks in the early mean; where there are fewer tasks, all.
        last: Tasks in the late mean; accuracy swings from task to task, so one is noise.

    Raises:
        InvalidInput: If the shapes do not fit, a recall is NaN, or a window is below 1.

    Example:
        >>> recalls = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
        >>> found = accumulation(recalls, torch.tensor([[0], [1]]), first=1, last=1)
        >>> found.early, found.late, found.learned, found.forgotten
        (0.5, 0.75, 1.0, 0.25)
    """
    if recalls.ndim != 2 or tasks.ndim != 2 or len(recalls) != len(tasks) + 1 or len(tasks) == 0:
        raise InvalidInput(
            f"expected recalls (T + 1, K) and tasks (T, c), T >= 1; got {tuple(recalls.shape)}, {tuple(tasks.shape)}"
        )
    if not bool(recalls.isfinite().all()):
        raise InvalidInput("a recall is NaN or infinite; test data must have samples of every class")
    if min(first, last) < 1:
        raise InvalidInput(f"windows must be at least 1 task; got first = {first}, last = {last}")
    r = recalls.double()
    own = torch.zeros(len(tasks), r.shape[1], dtype=torch.bool).scatter(1, tasks.cpu(), True).to(r.device)
    steps, accuracy = r.diff(dim=0), r[1:].mean(dim=1)
    t = torch.arange(len(tasks), dtype=r.dtype, device=r.device) - (len(tasks) - 1) / 2
    slope = (t @ accuracy / t.square().sum()).item() if len(tasks) > 1 else 0.0
    early, late = accuracy[:first].mean().item(), accuracy[-last:].mean().item()
    forgotten = -steps[~own].mean().item() if not own.all() else 0.0
    return Accumulation(early, late, late - early, slope, steps[own].mean().item(), forgotten)


class KnowledgeAccumulation:
    """Accuracy over classes as training goes on: now, against the first measurement, and against each class's best.

    Measure it on data of all classes, after each task.

    Attributes:
        recalls: (K,) of each measurement so far; `torch.stack(probe.recalls)` is what `accumulation` takes.

    Example:
        >>> probe, view = KnowledgeAccumulation(), View(torch.nn.Identity())
        >>> values = probe.measure(view, [(torch.eye(2), torch.tensor([0, 0]))])
        >>> values["class_accuracy"], probe.skipped["class_accuracy/1"]
        (0.5, 'the data have no sample of the class')
    """

    def __init__(self) -> None:
        self.recalls: list[Tensor] = []
        self.skipped: dict[str, str] = {}

    @torch.no_grad()
    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return accuracies and their changes.

        Args:
            view: The network.
            batches: Data of all classes; what is missing counts in no mean.

        Returns:
            "class_accuracy", the mean over classes, and "class_accuracy/<k>"; "class_accuracy_worst", the lowest of
            them; "accumulated", the mean since the first measurement; "below_best", how far classes are below their
            best measurement on average. All NaN, with the reason in `skipped`, where scores are not finite.

        Raises:
            InvalidInput: If labels are out of range, or the number of classes has changed.
        """
        pairs = [(view.scores(x), y) for x, y in batches]
        scores, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        now = class_recalls(scores, targets).cpu()
        if self.recalls and len(now) != len(self.recalls[0]):
            raise InvalidInput(f"{len(now)} classes after {len(self.recalls[0])} before; use one probe per network")
        finite = bool(scores.isfinite().all())
        self.recalls.append(now if finite else torch.full_like(now, math.nan))
        past = torch.stack(self.recalls).nan_to_num(nan=-math.inf).max(dim=0).values
        return self._named(
            self.recalls[-1], past, "the data have no sample of the class" if finite else "scores are NaN"
        )

    def _named(self, now: Tensor, best: Tensor, reason: str) -> dict[str, float]:
        there = ~now.isnan()
        values = {f"{_KEY}/{k}": r for k, r in enumerate(now.tolist())}
        values |= {
            _KEY: now[there].mean().item(),
            f"{_KEY}_worst": now[there].min().item() if bool(there.any()) else math.nan,
            "accumulated": (now - self.recalls[0])[there].mean().item(),
            "below_best": (best - now)[there].mean().item(),
        }
        self.skipped = {key: reason for key, value in values.items() if math.isnan(value)}
        return values
