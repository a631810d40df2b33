"""Class means of features: the few vectors that a collapsed network's features reduce to.

Shapes: features (N, d), targets (N,) with classes 0..K-1, means (K, d) in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["class_means"]

IN_CACHE = 2**16  # elements of features worked on at a time, so that they stay in a core's cache


def check_labels(features: Tensor, targets: Tensor, num_classes: int) -> None:
    """Refuse features and labels that do not fit together, in one line.

    Raises:
        InvalidInput: If the shapes, the types or the range of the labels are wrong.
    """
    if features.ndim != 2 or not features.is_floating_point():
        raise InvalidInput(f"features must be floats (samples, features), not {features.dtype} {tuple(features.shape)}")
    if targets.shape != features.shape[:1] or targets.is_floating_point() or targets.is_complex():
        raise InvalidInput(
            f"targets must be integer classes ({len(features)},), not {targets.dtype} {tuple(targets.shape)}"
        )
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < num_classes):
        raise InvalidInput(
            f"labels must lie in 0..{num_classes - 1}; they range from {int(targets.min())} to {int(targets.max())}"
        )


def class_count(given: int | None, scores: Tensor | None, head: nn.Linear | None) -> int:
    """Return the number of classes: as given, or the width of the scores, or of the head.

    Raises:
        InvalidInput: If nothing tells.
    """
    if given is not None:
        return given
    if scores is not None:
        return scores.shape[1]
    if head is not None:
        return head.out_features
    raise InvalidInput("the number of classes is unknown; give num_classes, scores or head")


def chunks(features: Tensor, targets: Tensor, elements: int = IN_CACHE) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (features, targets) a few rows at a time, half precision raised to float32."""
    rows = max(1, elements // max(1, features.shape[1]))
    for h, y in zip(features.detach().split(rows), targets.split(rows), strict=True):
        yield h if h.dtype in (torch.float32, torch.float64) else h.float(), y


def class_sums(features: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the sum (K, d) of each class's features and its number of samples (K,), both in float64."""
    sums = features.new_zeros(num_classes, features.shape[1], dtype=torch.float64)
    for h, y in chunks(features, targets):
        sums.index_add_(0, y, h.double())
    return sums, torch.bincount(targets, minlength=num_classes).double()


def class_means(features: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Return the mean of each class's features.

    Args:
        features: (N, d), any floating type.
        targets: Classes (N,), 0..num_classes-1.
        num_classes: K.

    Returns:
        Means (K, d) in float64; NaN in the row of a class without samples.

    Raises:
        InvalidInput: If the shapes, the types or the range of the labels are wrong.

    Example:
        >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2)
        tensor([[2.],
                [5.]], dtype=torch.float64)
    """
    check_labels(features, targets, num_classes)
    sums, counts = class_sums(features, targets, num_classes)
    return sums.div_(counts[:, None])
