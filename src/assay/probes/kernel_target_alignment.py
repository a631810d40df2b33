"""Kernel-target alignment: how well the kernel of the last features fits the targets, in one pass.

Cristianini et al. (2001); centred: Cortes, Mohri and Rostamizadeh (2012, JMLR 13), def. 4; measured on trained features
in Kothapalli et al. (2025, arXiv:2406.04657).

    A = <K, K_y> / (|K|_F |K_y|_F),  K = Z Z^T,  K_y = Y Y^T,  with features Z (n, d) and targets Y (n, C)

No n x n kernel is formed: <K, K_y> = |Z^T Y|_F^2, |K|_F = |Z^T Z|_F, |K_y|_F = |Y^T Y|_F, and centring both kernels
takes the means from the rows. Classes count as one-hot rows.

Departures: the centred alignment is given beside the paper's, which a common offset of features or targets raises.

Cost: 2 n d^2 flops, memory 8 d (d + C) bytes, one pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from assay.errors import InvalidInput
from assay.probes.class_statistics import check_labels, class_count

__all__ = ["KernelTargetAlignment"]

_KEYS = ("kernel_target_alignment", "kernel_target_alignment_centred")


class KernelTargetAlignment(Metric):
    """Alignment of the features' linear kernel with the targets', in [0, 1], plain and centred.

    Args:
        num_classes: C for class targets; the width of the scores or of the head if not given.
        **metric_options: Passed to `torchmetrics.Metric`.

    Example:
        >>> probe = KernelTargetAlignment(num_classes=2)
        >>> probe.update(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
        >>> {name: round(value, 6) for name, value in probe.compute().items()}
        {'kernel_target_alignment': 1.0, 'kernel_target_alignment_centred': 1.0}
    """

    consumes = ("features", "targets", "scores", "head")
    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    moments: Tensor
    width: Tensor

    def __init__(self, num_classes: int | None = None, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        if num_classes is not None and num_classes < 2:
            raise InvalidInput(f"num_classes must be at least 2, not {num_classes}")
        self.num_classes = num_classes
        self.skipped: dict[str, str] = {}
        # Of rows (Z, Y, 1): one matrix holds Z^T Z, Z^T Y, Y^T Y, the sums and n. The first batch gives it its size.
        self.add_state("moments", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("width", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(
        self, features: Tensor, targets: Tensor, scores: Tensor | None = None, head: nn.Linear | None = None
    ) -> None:
        """Take in a batch.

        Args:
            features: (B, d), finite.
            targets: Classes (B,), or numbers to regress (B,) or (B, C).
            scores: Class scores (B, C); only their width is used.
            head: The classifier; only its width is used.

        Raises:
            InvalidInput: If shapes, types or labels are wrong, or features or targets are not finite.
        """
        Y = self._targets(features, targets, scores, head)
        if not (features.isfinite().all() and Y.isfinite().all()):
            raise InvalidInput("features or targets have NaN or infinite entries; their alignment is undefined")
        Z = features.detach().double()  # centring subtracts large numbers
        rows = torch.cat([Z, Y.double(), Z.new_ones(len(Z), 1)], dim=1)
        self.moments = self.moments + rows.T @ rows
        self.width = torch.full_like(self.width, Z.shape[1])

    def _targets(self, features: Tensor, targets: Tensor, scores: Tensor | None, head: nn.Linear | None) -> Tensor:
        if targets.is_floating_point():
            if features.ndim != 2 or targets.ndim not in (1, 2) or len(targets) != len(features):
                raise InvalidInput(
                    f"expected features (B, d) and targets (B,) or (B, C); got {tuple(features.shape)} and "
                    f"{tuple(targets.shape)}"
                )
            return targets.detach().reshape(len(targets), -1)
        classes = class_count(self.num_classes, scores, head)
        check_labels(features, targets, classes)
        return F.one_hot(targets, classes)

    def compute(self) -> dict[str, float]:
        """Return both alignments by name, NaN where undefined (`skipped` says why).

        Raises:
            InvalidInput: If no sample was seen.
        """
        if self.moments.ndim == 0:
            raise InvalidInput("kernel-target alignment has seen no samples; call update before compute")
        plain, sums, n = self.moments[:-1, :-1], self.moments[-1, :-1], self.moments[-1, -1]
        centred = plain - torch.outer(sums, sums) / n
        # What rounding leaves of features or targets without spread is 0.
        noise = 1e-12 * plain.diagonal()
        centred = torch.where((centred.diagonal() > noise)[:, None] & (centred.diagonal() > noise), centred, 0.0)
        self.skipped = {}
        return {key: self._alignment(key, moments) for key, moments in zip(_KEYS, (plain, centred), strict=True)}

    def _alignment(self, key: str, moments: Tensor) -> float:
        d = int(self.width)
        lengths = moments[:d, :d].norm() * moments[d:, d:].norm()
        if not lengths > 0:
            self.skipped[key] = "the features or the targets are all 0, or all the same"
            return math.nan
        return (moments[:d, d:].square().sum() / lengths).item()
