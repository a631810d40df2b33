"""Do two networks arrange their classes alike? Linear CKA between their class means.

Kornblith et al. (2019), "Similarity of Neural Network Representations Revisited" (linear CKA), applied to class means
because the claim of Zhou et al. (2022, arXiv:2210.02192) that all losses give the same features is one about means:
the spread within classes vanishes. Any two simplex ETFs agree exactly, whatever their dimension, rotation and scale.

Shapes: first (K, d1), second (K, d2). Cost: two K x K Gram matrices.
"""

from __future__ import annotations

from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._simplex import centred

__all__ = ["feature_agreement"]


def feature_agreement(first: Tensor, second: Tensor) -> float:
    """Return the linear CKA of two matrices of class means.

    Args:
        first: Class means (K, d1) of one network, for example `class_means(features, targets, K)`.
        second: Class means (K, d2) of another, in the same order of classes.

    Returns:
        A value in [0, 1]: 1 if the means agree up to rotation, scale and shift; NaN if either has no spread.

    Raises:
        InvalidInput: If the matrices do not have the same number of rows.

    Example:
        >>> import torch
        >>> means = torch.eye(3)
        >>> round(feature_agreement(means, 5 * means[:, [2, 0, 1]] + 7), 12)
        1.0
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise InvalidInput(
            f"expected two matrices (classes, features), got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    a, b = centred(first), centred(second)
    G, H = a @ a.T, b @ b.T
    return ((G * H).sum() / (G.norm() * H.norm())).item()
