"""Noise detection: how well does a flag on each training sample find the wrong labels?

Precision and recall of flagged samples against the known corruption, as Liu et al. (2022, arXiv:2202.14026) look at
what their noise variables picked up; works for any flag, such as `SOPLoss.flagged()` or a loss above a threshold.

Shapes: flagged and corrupted (N,), booleans. Cost: two sums.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["noise_detection"]


def noise_detection(flagged: Tensor, corrupted: Tensor) -> dict[str, float]:
    """Return precision and recall of a flag for wrong labels.

    Args:
        flagged: Whether each sample's label is taken for wrong (N,).
        corrupted: Whether it is wrong (N,).

    Returns:
        "noise_precision", the share of the flagged that are wrong, and "noise_recall", the share of the wrong that are
        flagged; NaN where nothing is flagged, or wrong.

    Raises:
        InvalidInput: If the two are no boolean vectors of the same length.

    Example:
        >>> noise_detection(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
        {'noise_precision': 0.5, 'noise_recall': 1.0}
    """
    if flagged.dtype != torch.bool or corrupted.dtype != torch.bool or flagged.shape != corrupted.shape:
        raise InvalidInput(
            f"expected two boolean vectors of one length; got {flagged.dtype} {tuple(flagged.shape)} and "
            f"{corrupted.dtype} {tuple(corrupted.shape)}"
        )
    found = int((flagged & corrupted).sum())
    shares = {"noise_precision": int(flagged.sum()), "noise_recall": int(corrupted.sum())}
    return {name: found / total if total else math.nan for name, total in shares.items()}
