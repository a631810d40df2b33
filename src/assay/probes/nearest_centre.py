"""NC4: does the network decide as a nearest-class-mean classifier would, and how often is that classifier right?

Papyan, Han, Donoho (2020), NC4. The class means must be known, so this is the second pass after
`assay.probes.NeuralCollapse`, whose `follow_up()` returns it.

Shapes: B samples, K classes, d features. Cost: 2 B K d flops per batch, memory K d.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from assay.errors import InvalidInput
from assay.probes._simplex import centred
from assay.probes.class_statistics import check_labels

__all__ = ["NearestCentreDisagreement"]


def nearest(features: Tensor, M: Tensor) -> Tensor:
    """Return the index (B,) of the nearest centre.

    Args:
        features: (B, d), relative to the average of the centres, which keeps the digits of small distances.
        M: Centres (K, d), relative to their average.
    """
    return (features @ M.T - M.square().sum(dim=1) / 2).argmax(dim=1)


class NearestCentreDisagreement(Metric):
    """Share of samples whose predicted class is not that of the nearest class mean, and that classifier's accuracy.

    Args:
        centres: Class means (K, d); those of the training data, also when test data are measured.
        **metric_options: Passed to `torchmetrics.Metric`.

    Example:
        >>> probe = NearestCentreDisagreement(torch.tensor([[0.0], [1.0]]))
        >>> probe.update(torch.tensor([[0.1], [0.9]]), torch.tensor([[2.0, 1.0], [2.0, 1.0]]))
        >>> probe.compute()
        {'nc4': 0.5}
    """

    consumes = ("features", "scores", "targets")
    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    different: Tensor
    correct: Tensor
    labelled: Tensor
    total: Tensor

    def __init__(self, centres: Tensor, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        self.skipped: dict[str, str] = {}
        self.average, self.M = centres.detach().double().mean(dim=0), centred(centres)
        for name in ("different", "correct", "labelled", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor, scores: Tensor, targets: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            features: (B, d).
            scores: Class scores (B, K).
            targets: Classes (B,); without them there is no accuracy.

        Raises:
            InvalidInput: If features, scores or targets do not fit the centres.
        """
        if features.shape[1:] != self.M.shape[1:] or scores.shape != (len(features), len(self.M)):
            raise InvalidInput(
                f"features {tuple(features.shape)} and scores {tuple(scores.shape)} do not fit "
                f"centres {tuple(self.M.shape)}"
            )
        device = features.device
        for name in ("different", "correct", "labelled", "total"):
            setattr(self, name, getattr(self, name).to(device))
        closest = nearest(features.detach() - self.average.to(device), self.M.to(device))
        self.different += (closest != scores.argmax(dim=1)).sum()
        if features.isnan().any() or scores.isnan().any():
            self.different += torch.nan
            self.correct += torch.nan
        self.total += len(features)
        if targets is not None:
            check_labels(features, targets, len(self.M))
            self.correct += (closest == targets).sum()
            self.labelled += len(features)

    def compute(self) -> dict[str, float]:
        """Return the shares, 0 to 1: "nc4" and, where targets were given, "ncc_accuracy"."""
        undefined = ("nc4", "ncc_accuracy") if self.different.isnan() else ()
        self.skipped = dict.fromkeys(undefined, "features or scores contain NaN")
        accuracy = {"ncc_accuracy": (self.correct / self.labelled).item()} if self.labelled > 0 else {}
        return {"nc4": (self.different / self.total).item()} | accuracy
