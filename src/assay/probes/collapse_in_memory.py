"""Neural collapse of features that are in memory already: two passes over them, and little memory beside them.

The measures are those of `assay.probes.neural_collapse`, where they are defined. Knowing the class means before the
second pass, it takes M Sigma_W M^T (K, K) directly and never forms the scatter (d, d).

Symbols: N samples, K classes, d features, M (K, d) the class means without their average.
Cost: 2 N d K flops (twice that with the head's scores), 8 K (2 d + 3 K) bytes and a chunk that stays in cache.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes._simplex import CollapseGeometry
from assay.probes.class_statistics import check_labels, chunks, class_count, class_sums

__all__ = ["measure_collapse"]


def measure_collapse(
    features: Tensor,
    targets: Tensor,
    *,
    head: nn.Linear | None = None,
    scores: Tensor | None = None,
    num_classes: int | None = None,
) -> dict[str, float]:
    """Measure NC1 to NC4.

    Args:
        features: Inputs of the classifier (N, d).
        targets: Classes (N,).
        head: The classifier; without it NC2 of the head and NC3 are NaN.
        scores: The network's class scores (N, K) for NC4; the head's if not given; NaN without either.
        num_classes: K; the width of the scores or of the head if not given.

    Returns:
        The measures by name; NaN where undefined.

    Raises:
        InvalidInput: If the number of classes is unknown, or shapes, types or labels are wrong.

    Example:
        >>> values = measure_collapse(torch.eye(3), torch.tensor([0, 1, 2]), scores=torch.eye(3))
        >>> round(values["nc1"], 12), values["nc4"]
        (0.0, 0.0)
    """
    K = class_count(num_classes, scores, head)
    check_labels(features, targets, K)
    if scores is not None and scores.shape != (len(features), K):
        raise InvalidInput(f"scores must be ({len(features)}, {K}), not {tuple(scores.shape)}")
    if head is not None and head.in_features != features.shape[1]:
        raise InvalidInput(f"the head reads {head.in_features} features, not {features.shape[1]}")
    geometry = CollapseGeometry(*_means(features, targets, K), head)
    if not geometry.defined:
        return geometry.values | {"nc4": math.nan}
    geometry.M = geometry.M.to(torch.promote_types(features.dtype, torch.float32))  # the float64 means go
    projected, trace, nc4 = _second_pass(features, targets, geometry, scores, head)
    geometry.add_spread(projected, trace)
    return geometry.values | {"nc4": nc4}


def _means(features: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    sums, counts = class_sums(features, targets, num_classes)
    return sums.div_(counts[:, None]), counts


@torch.no_grad()
def _second_pass(
    features: Tensor, targets: Tensor, geometry: CollapseGeometry, scores: Tensor | None, head: nn.Linear | None
) -> tuple[Tensor, float, float]:
    """Return N M Sigma_W M^T (K, K), N tr Sigma_W and NC4."""
    M, gram = geometry.M, geometry.gram
    centres = M + geometry.mean.to(M.dtype)
    # |h - mu_k|^2 = |h|^2 - 2 (h.M_k - |M_k|^2 / 2) with h = residual + M_y: nearest is where the bracket is largest.
    reach = (gram - gram.diagonal() / 2).to(M.dtype)
    projected, trace, different, position = torch.zeros_like(gram), gram.new_zeros(()), gram.new_zeros(()), 0
    for h, y in chunks(features, targets):
        residual = centres.index_select(0, y)
        torch.sub(h, residual, out=residual)
        p = residual @ M.T
        projected += p.T @ p
        trace += residual.flatten().dot(residual.flatten())
        if scores is not None or head is not None:
            decided = _decided(h, scores, head, position)
            different += (p.add_(reach[y]).argmax(dim=1) != decided).sum()
        position += len(h)
    nc4 = math.nan if scores is None and head is None else different.item() / len(features)
    return projected, trace.item(), nc4


def _decided(h: Tensor, scores: Tensor | None, head: nn.Linear | None, position: int) -> Tensor:
    """Return the network's decisions on the samples from a position on."""
    if scores is not None:
        return scores[position : position + len(h)].argmax(dim=1)
    assert head is not None
    return F.linear(h.to(head.weight.dtype), head.weight, head.bias).argmax(dim=1)  # head(h) would run its hooks
