"""Cross-entropy among the classes that occur in the batch: absent classes get no gradient.

Paper: "Challenging Common Assumptions about Catastrophic Forgetting" (arXiv:2207.04543), its masking of gradients in
the output layer (group masking in the official code).

    L(z, y) = -z_y + log sum_{k in S} e^{z_k},    S = the classes among the batch's labels

Trained on a few classes at a time, plain cross-entropy pushes the scores of all other classes down at every step. Here
they stay where they are. At test time nothing is masked.

Shapes: B samples, K classes; scores z (B, K), targets y (B,).

Departures: the code sets masked scores to -1e9 in place; here they are -inf in a copy, which half precision can hold,
and the caller's scores stay as they were. Cost: cross-entropy's, and a (B, K) comparison.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.losses._labels import check_reduction, label_column, pick, reduce

__all__ = ["MaskedCrossEntropy", "masked_cross_entropy"]


def masked_cross_entropy(scores: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return cross-entropy over the classes that occur among the targets.

    Args:
        scores: Logits (B, K).
        targets: Class indices (B,). A batch of a single class has loss and gradient 0.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (B,) with reduction "none".

    Raises:
        InvalidInput: On wrong shapes, float targets or, on a CPU, labels out of range.

    Example:
        >>> scores = torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.0, 9.0]])
        >>> masked_cross_entropy(scores, torch.tensor([0, 1]))  # log 2: the third class does not count
        tensor(0.6931)
    """
    column = label_column(scores, targets)
    absent = (column != torch.arange(scores.shape[1], device=scores.device)).all(dim=0)
    log_p = F.log_softmax(scores.masked_fill(absent, -torch.inf), dim=1)
    return reduce(-pick(log_p, column), reduction)


class MaskedCrossEntropy(nn.Module):
    """Cross-entropy over the batch's own classes as a criterion; see `masked_cross_entropy`.

    Args:
        reduction: "mean", "sum" or "none".

    Raises:
        InvalidInput: On an unknown reduction.

    Example:
        >>> scores, targets = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
        >>> bool(torch.isclose(MaskedCrossEntropy()(scores, targets), F.cross_entropy(scores, targets)))
        True
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of scores (B, K) against class indices (B,)."""
        return masked_cross_entropy(scores, targets, self.reduction)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"reduction={self.reduction!r}"
