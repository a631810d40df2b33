"""Leave-one-out accuracy of a k-nearest-neighbour classifier on the last features, by cosine similarity.

The quantity that LOOK trains (arXiv:2110.06014) and by which features are compared without fitting anything to them.

    votes_i = labels of the k samples nearest to i, itself left out;   accuracy = share of i whose majority is y_i

Shapes: n samples, d features, C classes.

Departures: samples tied for the last places share them, so that the result does not depend on the samples' order;
classes with equally many votes go to the lower label, as in scikit-learn's classifier.

Cost: n^2 (d + 2 C) multiply-adds in float64, in blocks; memory n (d + 1), since neighbours need all samples: the one
kind of probe that cannot stream.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from assay.errors import InvalidInput
from assay.probes.class_statistics import check_labels, class_count

__all__ = ["KNNAccuracy", "neighbour_votes"]

BLOCK = 2**20  # similarities at a time: 8 MB


@torch.no_grad()
def neighbour_votes(
    queries: Tensor, keys: Tensor, key_targets: Tensor, k: int, num_classes: int, *, leave_one_out: bool = False
) -> Tensor:
    """Return how many of a query's k nearest keys are of each class.

    Args:
        queries: (B, d).
        keys: (n, d), compared by cosine; zero vectors are at right angles to everything.
        key_targets: Classes (n,), 0..num_classes-1.
        k: Neighbours, at most the keys that count.
        num_classes: C.
        leave_one_out: Queries are the keys, and none is its own neighbour.

    Returns:
        float64 (B, C), each row k in total; keys tied for the last places share them, so votes may be fractions.

    Raises:
        InvalidInput: On wrong shapes or labels, or if k is above the number of neighbours.

    Example:
        >>> keys = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> neighbour_votes(torch.tensor([[1.0, 0.05]]), keys, torch.tensor([0, 0, 1]), k=2, num_classes=2)
        tensor([[2., 0.]], dtype=torch.float64)
    """
    check_labels(keys, key_targets, num_classes)
    if queries.ndim != 2 or queries.shape[1] != keys.shape[1] or (leave_one_out and len(queries) != len(keys)):
        raise InvalidInput(f"queries {tuple(queries.shape)} do not fit keys {tuple(keys.shape)}")
    there = len(keys) - leave_one_out
    if not 1 <= k <= there:
        raise InvalidInput(f"k must be from 1 to the number of neighbours, {there}; got {k}")
    q, b = (F.normalize(h.double(), dim=1) for h in (queries, keys))
    labels = F.one_hot(key_targets.long(), num_classes).double()
    rows = max(1, BLOCK // len(keys))
    votes = []
    for start in range(0, len(q), rows):
        similarities = q[start : start + rows] @ b.T
        if leave_one_out:
            similarities.diagonal(start).fill_(-torch.inf)
        last = similarities.topk(k, dim=1).values[:, -1:]
        nearer, tied = (similarities > last).double(), (similarities == last).double()
        places = (k - nearer.sum(dim=1, keepdim=True)) / tied.sum(dim=1, keepdim=True)
        votes.append((nearer + places * tied) @ labels)
    return torch.cat(votes) if votes else q.new_zeros(0, num_classes)


class KNNAccuracy(Metric):
    """Share of samples whose k nearest neighbours, themselves left out, vote for their class.

    Args:
        k: Neighbours, 1 or more.
        num_classes: C; the width of the scores or of the head if not given.
        **metric_options: Passed to `torchmetrics.Metric`.

    Raises:
        InvalidInput: If k is below 1.

    Example:
        >>> probe = KNNAccuracy(k=1, num_classes=2)
        >>> probe.update(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
        >>> {name: round(value, 3) for name, value in probe.compute().items()}
        {'knn_accuracy': 0.667, 'knn_alone': 0.333}
    """

    consumes = ("features", "targets", "scores", "head")
    dear = True
    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    features: list[Tensor]
    targets: list[Tensor]
    classes: Tensor

    def __init__(self, k: int = 5, num_classes: int | None = None, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        if k < 1:
            raise InvalidInput(f"k must be at least 1, not {k}")
        self.k, self.num_classes = k, num_classes
        self.skipped: dict[str, str] = {}
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")
        self.add_state("classes", torch.zeros((), dtype=torch.long), dist_reduce_fx="max")

    def update(
        self, features: Tensor, targets: Tensor, scores: Tensor | None = None, head: nn.Linear | None = None
    ) -> None:
        """Take in a batch.

        Args:
            features: (B, d).
            targets: Classes (B,).
            scores: Class scores (B, C); only their width is used.
            head: The classifier; only its width is used.

        Raises:
            InvalidInput: If shapes, types or labels are wrong.
        """
        classes = class_count(self.num_classes, scores, head)
        check_labels(features, targets, classes)
        self.features.append(features.detach().clone())
        self.targets.append(targets.clone())
        self.classes = torch.full_like(self.classes, classes)

    def compute(self) -> dict[str, float]:
        """Return "knn_accuracy" and "knn_alone", the share of samples without a neighbour of their class.

        NaN where undefined (`skipped` says why): no more than k samples, or features with NaN or infinite entries.

        Raises:
            InvalidInput: If no sample was seen.
        """
        if not self.features:
            raise InvalidInput("k-nearest-neighbour accuracy has seen no samples; call update before compute")
        h, y = dim_zero_cat(self.features), dim_zero_cat(self.targets)
        reason = "features contain NaN or infinite values" if not h.isfinite().all() else ""
        if len(h) <= self.k:
            reason = f"{len(h)} samples have no {self.k} neighbours each; lower k"
        self.skipped = dict.fromkeys(("knn_accuracy", "knn_alone"), reason) if reason else {}
        if reason:
            return dict.fromkeys(self.skipped, math.nan)
        votes = neighbour_votes(h, h, y, self.k, int(self.classes), leave_one_out=True)
        alone = votes.gather(1, y[:, None]) == 0
        return {
            "knn_accuracy": (votes.argmax(dim=1) == y).double().mean().item(),
            "knn_alone": alone.double().mean().item(),
        }
