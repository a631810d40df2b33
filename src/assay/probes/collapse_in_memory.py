"""Neural collapse of features that are in memory already: two passes over them, and little memory beside them.

The measures are those of `assay.probes.neural_collapse`, where they are defined. Knowing the class means before the
second pass, it needs only their span (K-1 dimensions) and never forms the scatter (d, d).

Symbols: N samples, K classes, d features.
Cost: 2 N d K flops (twice that with the head's scores, or far from collapse), 8 K (2 d + 3 K) bytes and a chunk that
stays in cache.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes._simplex import NEAREST_KEYS, CollapseGeometry, check_centre
from assay.probes._spread import Spread, decisions
from assay.probes.class_statistics import check_labels, chunks, class_count, class_sums

__all__ = ["measure_collapse"]

_CHUNK = 3 * 2**15  # elements: enough rows for a fast product, few enough for a core's cache


@torch.no_grad()
def measure_collapse(
    features: Tensor,
    targets: Tensor,
    *,
    head: nn.Linear | None = None,
    scores: Tensor | None = None,
    num_classes: int | None = None,
    centre: str = "class",
    means: Tensor | None = None,
) -> dict[str, float]:
    """Measure NC1 to NC4.

    Args:
        features: Inputs of the classifier (N, d).
        targets: Classes (N,).
        head: The classifier; without it NC2 of the head and NC3 are NaN.
        scores: The network's class scores (N, K) for NC4; the head's if not given; NaN without either.
        num_classes: K; the width of the scores or of the head if not given.
        centre: What mu_G averages: "class" means or "sample"s.
        means: Class means (K, d) to measure about: for test data those of the training data; the features' own if not
            given.

    Returns:
        The measures by name; NaN where undefined.

    Raises:
        InvalidInput: If the number of classes is unknown, or shapes, types or labels are wrong.

    Example:
        >>> features, targets = torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2]).repeat(2)
        >>> values = measure_collapse(features, targets, scores=features)
        >>> round(values["nc1"], 12), values["nc4"]
        (0.0, 0.0)
    """
    K = class_count(num_classes, scores, head)
    check_labels(features, targets, K)
    check_centre(centre)
    _check_shapes(features, K, scores, head, means)
    geometry = _geometry(features, targets, K, head, centre, means)
    if not geometry.defined:
        return geometry.values | dict.fromkeys(NEAREST_KEYS, math.nan)
    spread = Spread(geometry, torch.promote_types(features.dtype, torch.float32), own=means is None)
    position, decide = 0, scores is not None or head is not None
    for h, y in chunks(features, targets, _CHUNK):
        spread.add(h, y, _decided(h, scores, head, position) if decide else None)
        position += len(h)
    return spread.finish() | ({} if decide else {"nc4": math.nan})


def _check_shapes(
    features: Tensor, K: int, scores: Tensor | None, head: nn.Linear | None, means: Tensor | None
) -> None:
    if scores is not None and scores.shape != (len(features), K):
        raise InvalidInput(f"scores must be ({len(features)}, {K}), not {tuple(scores.shape)}")
    if head is not None and head.in_features != features.shape[1]:
        raise InvalidInput(f"the head reads {head.in_features} features, not {features.shape[1]}")
    if means is not None and means.shape != (K, features.shape[1]):
        raise InvalidInput(f"means must be ({K}, {features.shape[1]}), not {tuple(means.shape)}")


def _geometry(
    features: Tensor, targets: Tensor, K: int, head: nn.Linear | None, centre: str, means: Tensor | None
) -> CollapseGeometry:
    if means is None:
        sums, counts = class_sums(features, targets, K)
        return CollapseGeometry(sums.div_(counts[:, None]), counts, head, centre)
    if centre == "sample":
        raise InvalidInput("centre='sample' needs the sizes of the classes that `means` came from; use centre='class'")
    return CollapseGeometry(means.detach().to(torch.float64, copy=True), None, head)


def _decided(h: Tensor, scores: Tensor | None, head: nn.Linear | None, position: int) -> Tensor:
    """Return the network's decisions on the samples from a position on."""
    if scores is not None:
        return decisions(scores[position : position + len(h)])
    assert head is not None
    return decisions(F.linear(h.to(head.weight.dtype), head.weight, head.bias))  # head(h) would run its hooks
