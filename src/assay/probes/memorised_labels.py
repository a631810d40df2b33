"""Label memorisation: does the network say the wrong labels that it was given, or the true ones?

The measure behind the training curves of Liu et al. (2022, arXiv:2202.14026) and of the literature on noisy labels
before it: of the training samples with a wrong label, the share on which the network predicts

    the given label (memorised)  or  the clean one (recovered)

and, of the samples with a right label, the share that it fits. A network that learns the clean structure first and then
memorises shows `recovered` rise and fall, and `memorised` rise late.

Shapes: scores (N, K), given and clean labels (N,). It needs the clean labels, so it is for noise that was put in on
purpose (`assay.data.noisy_labels`). Cost: one forward pass over the samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes.class_statistics import check_labels
from assay.probes.view import View

__all__ = ["LabelMemorisation", "label_memorisation"]


def label_memorisation(scores: Tensor, given: Tensor, clean: Tensor) -> dict[str, float]:
    """Return what became of wrong and of right labels.

    Args:
        scores: Scores (N, K) of the training samples.
        given: The labels (N,) that the network was trained on.
        clean: The true labels (N,).

    Returns:
        "memorised" and "recovered" over the samples with wrong labels, "right_labels_fitted" over the others; NaN where
        there is no such sample.

    Raises:
        InvalidInput: If the shapes, the types or the range of the labels are wrong.

    Example:
        >>> scores = torch.eye(3)
        >>> label_memorisation(scores, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 2]))
        {'memorised': 0.5, 'recovered': 0.5, 'right_labels_fitted': 1.0}
    """
    for labels in (given, clean):
        check_labels(scores, labels, scores.shape[1])
    predicted, wrong = scores.argmax(dim=1), given != clean
    return {
        "memorised": _share(predicted == given, wrong),
        "recovered": _share(predicted == clean, wrong),
        "right_labels_fitted": _share(predicted == given, ~wrong),
    }


def _share(hits: Tensor, among: Tensor) -> float:
    return hits[among].double().mean().item() if bool(among.any()) else math.nan


class LabelMemorisation:
    """Shares of wrong labels memorised and recovered, and of right labels fitted, on samples of its own.

    Args:
        inputs: Training inputs (N, ...).
        given: The labels (N,) that the network is trained on.
        clean: The true labels (N,).
        batch_size: Samples per forward pass.

    Raises:
        InvalidInput: If the three differ in length or are empty.

    Example:
        >>> probe = LabelMemorisation(torch.eye(3), torch.tensor([0, 1, 1]), torch.tensor([0, 0, 2]))
        >>> probe.measure(View(torch.nn.Identity()), [])["memorised"]
        0.5
    """

    def __init__(self, inputs: Tensor, given: Tensor, clean: Tensor, batch_size: int = 512) -> None:
        if not len(inputs) == len(given) == len(clean) or not len(inputs):
            raise InvalidInput(
                f"expected one given and one clean label per input; got {len(inputs)} inputs, {len(given)} given and "
                f"{len(clean)} clean labels"
            )
        self.inputs, self.given, self.clean, self.batch_size = inputs, given, clean, batch_size
        self.skipped: dict[str, str] = {}

    @torch.no_grad()
    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return shares in [0, 1]; NaN, with the reason in `skipped`, where there are none or scores are not finite.

        Args:
            view: The network.
            batches: Not used: the probe has samples of its own, in the order of their clean labels.

        Returns:
            "memorised", "recovered" and "right_labels_fitted".
        """
        dtype = next((p.dtype for p in view.model.parameters() if p.is_floating_point()), self.inputs.dtype)
        inputs = self.inputs.to(dtype) if self.inputs.is_floating_point() else self.inputs
        scores = torch.cat([view.scores(x.to(view.device)) for x in inputs.split(self.batch_size)])
        values = label_memorisation(scores, self.given.to(scores.device), self.clean.to(scores.device))
        why = {key: "no label is wrong" for key in ("memorised", "recovered")}
        why["right_labels_fitted"] = "no label is right"
        if not bool(scores.isfinite().all()):
            values, why = dict.fromkeys(values, math.nan), dict.fromkeys(values, "the scores contain NaN or infinity")
        self.skipped = {key: why[key] for key, value in values.items() if math.isnan(value)}
        return values
