"""What `jsd` and `linear_jsd` have in common around their operators: checks of options, and the mean over rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["check_beta", "check_labels_of_rows", "check_reduction", "mean_of_rows"]


def mean_of_rows(total: Tensor, rows: int, labels: Tensor | None, ignore_index: int) -> Tensor:
    """Divide by the number of rows that count; without any the mean is nan and its gradients are 0."""
    if labels is None:
        return total / rows if rows else total * math.nan
    count = (labels != ignore_index).sum()
    return torch.where(count > 0, total / count.clamp(min=1), math.nan)


def check_beta(name: str, beta: float) -> None:
    """Check the mixture's share.

    Raises:
        InvalidInput: If it is none.
    """
    if not 0.0 <= beta <= 1.0:
        raise InvalidInput(f"{name}: beta must be in [0, 1] (0: forward KL, 1: reverse KL), not {beta}")


def check_labels_of_rows(name: str, labels: Tensor | None, input: Tensor) -> None:
    """Check labels that say which rows of an input (..., N) count.

    Raises:
        InvalidInput: If they are not int64, one per row, on the input's device.
    """
    if labels is None:
        return
    if labels.dtype != torch.int64 or labels.shape != input.shape[:-1] or labels.device != input.device:
        raise InvalidInput(
            f"{name}: labels must be int64 of shape {tuple(input.shape[:-1])} on {input.device}, "
            f"not {labels.dtype} of shape {tuple(labels.shape)} on {labels.device}"
        )


def check_reduction(name: str, reduction: str, known: tuple[str, ...]) -> None:
    """Check a reduction.

    Raises:
        InvalidInput: If it is not among the known ones.
    """
    if reduction not in known:
        raise InvalidInput(f"{name}: reduction must be one of {', '.join(known)}, not {reduction!r}")
