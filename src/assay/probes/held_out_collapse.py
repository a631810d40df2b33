"""Neural collapse of held-out data about the class means of the training data.

Kothapalli's review (2023, arXiv:2206.04041): collapse is a statement about training data, and does not imply that
features of new data collapse to the same means. Measured with the training data's means mu_k and their Sigma_B:

    test_nc1            tr(Sigma_W pinv(Sigma_B)) / K, Sigma_W = 1/N sum_i (h_i - mu_y)(h_i - mu_y)^T of held-out h
    test_nc1_trace, test_nc1_cdnv, test_nc4, test_ncc_accuracy    as in `assay.probes.neural_collapse`

Sigma_W includes how far the means of held-out data have moved. Cost: one pass over the training data, one over the
held-out data, memory of a few class means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from assay.probes._batches import Batches
from assay.probes._simplex import NEAREST_KEYS, SPREAD_KEYS, CollapseGeometry
from assay.probes._spread import Spread, decisions
from assay.probes.class_statistics import check_labels, class_sums
from assay.probes.view import View

__all__ = ["HeldOutCollapse"]


class HeldOutCollapse:
    """NC1, NC4 and the nearest-class-mean accuracy on held-out data; the data that `Watch` has give the class means.

    Args:
        data: Held-out data, in any form that `assay.Watch` takes.
        prefix: Stands before each name, to tell several sets apart.
        batch_size: Samples per forward pass where `data` are not in batches already.

    Example:
        >>> inputs, targets = torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2)
        >>> view = View(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(3, 3)))
        >>> values = HeldOutCollapse((inputs + 0.1, targets)).measure(view, [(inputs, targets)])
        >>> round(values["test_nc1_trace"], 6), values["test_ncc_accuracy"]  # 3 x 0.1^2 over 2/3
        (0.045, 1.0)
    """

    def __init__(self, data: Any, prefix: str = "test", batch_size: int = 512) -> None:
        self.data, self.prefix, self.batch_size = data, prefix, batch_size
        self.skipped: dict[str, str] = {}

    @torch.no_grad()
    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return the measures by name, NaN where undefined.

        Args:
            view: The network; features are what its head reads.
            batches: Training data, which the class means are those of.

        Raises:
            InvalidInput: If labels are out of range, or the network's features are unknown.
        """
        geometry = CollapseGeometry(*_means(view, batches), None)
        geometry.skipped = {key: why for key, why in geometry.skipped.items() if key in (*SPREAD_KEYS, *NEAREST_KEYS)}
        values = dict.fromkeys((*SPREAD_KEYS, *NEAREST_KEYS), math.nan)
        if geometry.defined:
            values = self._about(geometry, view)
        self.skipped = {f"{self.prefix}_{key}": why for key, why in geometry.skipped.items()}
        return {f"{self.prefix}_{key}": values[key] for key in (*SPREAD_KEYS, *NEAREST_KEYS)}

    def _about(self, geometry: CollapseGeometry, view: View) -> dict[str, float]:
        dtype = next((p.dtype for p in view.model.parameters()), torch.float32)
        spread = Spread(geometry, torch.promote_types(dtype, torch.float32), own=False)
        for x, y in Batches(self.data, self.batch_size, view):
            seen = view.observe(x)
            check_labels(seen.features, y, len(spread.counts))
            spread.add(seen.features.to(spread.centres.dtype), y, decisions(seen.scores))
        return spread.finish()


def _means(view: View, batches: Iterable[tuple[Any, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the class means (K, d) of the last features, and the samples per class (K,)."""
    totals: tuple[Tensor, Tensor] | None = None
    for x, y in batches:
        seen = view.observe(x)
        check_labels(seen.features, y, seen.scores.shape[1])
        found = class_sums(seen.features, y, seen.scores.shape[1])
        totals = found if totals is None else (totals[0] + found[0], totals[1] + found[1])
    assert totals is not None, "batches are never empty"
    return totals[0] / totals[1][:, None], totals[1]
