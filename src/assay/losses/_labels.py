"""What every criterion on class labels does first (look at its input) and last (reduce)."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["REDUCTIONS", "check_reduction", "label_column", "pick", "reduce", "scatter"]

REDUCTIONS = ("mean", "sum", "none")


def check_reduction(reduction: str) -> str:
    """Return the reduction's name if there is such a reduction."""
    if reduction not in REDUCTIONS:
        raise InvalidInput(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    return reduction


def label_column(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the labels as an int64 column (B, 1); checks shapes and types, no values, so no GPU is waited for."""
    if scores.ndim != 2:
        raise InvalidInput(f"scores must have shape (B, K); got {tuple(scores.shape)}; flatten other axes into B")
    if not scores.is_floating_point():
        raise InvalidInput(f"scores must be floating point; got {scores.dtype}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InvalidInput(f"targets must be class indices (integers); got {targets.dtype}")
    if targets.shape != scores.shape[:1]:
        raise InvalidInput(
            f"targets must have shape (B,) = ({scores.shape[0]},) for scores {tuple(scores.shape)}; "
            f"got {tuple(targets.shape)}"
        )
    return targets.long()[:, None]


def _out_of_range(error: Exception, scores: Tensor, column: Tensor) -> Exception:
    if "out of bounds" not in str(error):
        return error
    return InvalidInput(
        f"targets must lie in 0..{scores.shape[1] - 1} for {scores.shape[1]} classes; "
        f"got values from {int(column.min())} to {int(column.max())} (leave ignored samples out of the batch)"
    )


def pick(values: Tensor, column: Tensor) -> Tensor:
    """Return `values[b, label of b]`, shape (B,).

    On a CPU a label out of range is an `InvalidInput`. It is found by the gather itself, so the check costs nothing; on
    a GPU it is CUDA's device assertion, as with torch's own losses.
    """
    try:
        return values.gather(1, column).squeeze(1)
    except (IndexError, RuntimeError) as error:
        raise _out_of_range(error, values, column) from None


def scatter(values: Tensor, column: Tensor, source: Tensor) -> Tensor:
    """Return `values` with `source` (B, 1) in the labels' places; labels are checked as in `pick`."""
    try:
        return values.scatter(1, column, source)
    except (IndexError, RuntimeError) as error:
        raise _out_of_range(error, values, column) from None


def reduce(losses: Tensor, reduction: str) -> Tensor:
    """Reduce per-sample losses (B,) to their mean or sum, or not at all."""
    if check_reduction(reduction) == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()
