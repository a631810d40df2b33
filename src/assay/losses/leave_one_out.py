"""Leave-one-out k-nearest-neighbour loss (LOOK): a sample's nearest neighbours should share its label.

Paper: "Rethinking Supervised Pre-training for Better Downstream Transferring" (arXiv:2110.06014): a weighted k-nearest-
neighbour classifier whose leave-one-out error is the loss.

    p_i = sum_{j in N_k(i), y_j = y_i} exp(<z_i, b_j> / tau) / sum_{j in N_k(i)} exp(<z_i, b_j> / tau)
    L = -(1/B) sum_i log p_i

N_k(i) are the k keys b_j nearest to z_i, those of sample i left out, and a constant for the gradient. Far samples of
the class are not touched, so a class may keep several clusters; with all keys as neighbours it is neighbourhood
component analysis with a softmax of similarities, which pulls all of a class together.

Shapes: B queries z and N keys b of D features, rows of unit length; labels (B,) and (N,).

Departures, where the paper's details were not at hand: a query without a neighbour of its own class has p = 0 and
nowhere to go; with on_empty="nearest" (default) the nearest key of its class joins its neighbours, with "skip" (and
for a class with a single sample) its loss is 0 without gradient. The mean is over all B. The loss is computed as
log(1 + others' share / own share), which keeps its digits where p is near 1. Ties go to the lower position.

Cost: a search of B N D multiply-adds without the matrix (B, N); gradients of 2 B k D; see `assay.nn.neighbours`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._labels import check_reduction, reduce
from assay.nn.feature_bank import FeatureBank
from assay.nn.neighbours import nearest_neighbours, nearest_of_class
from assay.nn.similarities import neighbour_similarities

__all__ = ["LeaveOneOutKNNLoss", "leave_one_out_knn_loss"]

ON_EMPTY = ("nearest", "skip")
ABSENT = -1e30  # the exponent of what does not count: finite, so that no gradient is inf - inf


def _check_options(k: int, temperature: float, on_empty: str) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InvalidInput(f"k must be a whole number of neighbours, 1 or more; got {k!r}")
    if not 0 < temperature < math.inf:
        raise InvalidInput(f"temperature must be a finite number above 0; got {temperature}")
    if on_empty not in ON_EMPTY:
        raise InvalidInput(f"on_empty must be one of {', '.join(ON_EMPTY)}; got {on_empty!r}")


def _check_labels(what: str, targets: Tensor, samples: int) -> None:
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InvalidInput(f"{what} must be class indices (integers); got {targets.dtype}")
    if targets.shape != (samples,):
        raise InvalidInput(f"{what} must have shape ({samples},), one per row; got {tuple(targets.shape)}")


def leave_one_out_knn_loss(
    queries: Tensor,
    targets: Tensor,
    keys: Tensor,
    key_targets: Tensor,
    k: int,
    *,
    temperature: float = 0.1,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    on_empty: str = "nearest",
    reduction: str = "mean",
) -> Tensor:
    """Return -log of the share that a query's own class has among its k nearest keys.

    Args:
        queries: z (B, D), rows of unit length.
        targets: Their labels (B,).
        keys: b (N, D), rows of unit length; gradients flow into them too, if they require it.
        key_targets: Their labels (N,).
        k: Neighbours per query, at most the keys that are not its own.
        temperature: tau, above 0.
        query_ids: Which sample a query is (B,); keys with the same id are left out. None leaves none out.
        key_ids: Which sample a key is (N,); negative for an empty slot.
        on_empty: "nearest" adds the nearest key of its class to a query that has none among its neighbours; "skip"
            gives it the loss 0.
        reduction: "mean" (over all B), "sum" or "none".

    Returns:
        A scalar, or (B,) with reduction "none".

    Raises:
        InvalidInput: On wrong shapes or types, an option out of range, or a query with fewer than k neighbours.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> y, ids = torch.tensor([0, 0, 0, 0]), torch.arange(4)
        >>> leave_one_out_knn_loss(z, y, z, y, k=2, query_ids=ids, key_ids=ids)  # one class only
        tensor(0.)
    """
    _check_options(k, temperature, on_empty)
    chosen = nearest_neighbours(queries, keys, k, query_ids=query_ids, key_ids=key_ids)
    _check_labels("targets", targets, len(queries))
    _check_labels("key_targets", key_targets, len(keys))
    same = key_targets[chosen] == targets[:, None]
    similarities = neighbour_similarities(queries, keys, chosen)
    if on_empty == "nearest":
        own = nearest_of_class(
            *(queries, targets, keys, key_targets),
            wanted=~same.any(dim=1),
            query_ids=query_ids,
            key_ids=key_ids,
        )[:, None]
        joined = neighbour_similarities(queries, keys, own.clamp(min=0))
        similarities = torch.cat([similarities, torch.where(own < 0, ABSENT, joined)], dim=1)
        same = torch.cat([same, own >= 0], dim=1)
    return reduce(_minus_log_share(similarities / temperature, same), reduction)


def _minus_log_share(exponents: Tensor, same: Tensor) -> Tensor:
    """Return log(1 + sum of exp over the others / sum of exp over the same), (B,); 0 for rows without the same."""
    of_own = torch.where(same, exponents, ABSENT).logsumexp(dim=1)
    of_others = torch.where(same, ABSENT, exponents).logsumexp(dim=1)
    losses = torch.logaddexp(of_others - of_own, torch.zeros_like(of_own))
    return torch.where(same.any(dim=1), losses, 0.0)


class LeaveOneOutKNNLoss(nn.Module):
    """Leave-one-out k-nearest-neighbour loss of features, against a bank or within the batch.

    In a training loop: `loss = criterion(z, y, indices)`, `loss.backward()`, `criterion.bank.update(z, y, indices)`.
    The bank must hold more than k features before the first step, so fill it with one pass without gradients.

    Args:
        k: Neighbours per sample; the smaller, the more clusters a class may keep.
        temperature: tau, above 0.
        bank: What samples are compared with; None compares within the batch, with gradients on both sides.
        on_empty: What a sample without a neighbour of its class does: "nearest" or "skip"; see the function.
        reduction: "mean", "sum" or "none".

    Raises:
        InvalidInput: On an option out of range, or a k that the bank's size can never serve.

    Example:
        >>> criterion = LeaveOneOutKNNLoss(k=1, bank=FeatureBank(size=3, dim=2))
        >>> z, y, i = torch.eye(2)[[0, 0, 1]], torch.tensor([0, 0, 1]), torch.arange(3)
        >>> criterion.bank.update(z, y, i)
        >>> criterion(z, y, i)  # the third is alone in its class
        tensor(0.)
    """

    def __init__(
        self,
        k: int = 20,
        temperature: float = 0.1,
        bank: FeatureBank | None = None,
        on_empty: str = "nearest",
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_options(k, temperature, on_empty)
        if bank is not None and k > len(bank):
            raise InvalidInput(f"k = {k} neighbours from a bank of {len(bank)}; lower k or make the bank larger")
        self.k, self.temperature, self.on_empty = k, temperature, on_empty
        self.reduction = check_reduction(reduction)
        self.bank = bank

    def forward(self, features: Tensor, targets: Tensor, indices: Tensor | None = None) -> Tensor:
        """Return the loss; the bank is read, not changed.

        Args:
            features: (B, D), of any length; brought to unit length here, half precision raised to float32.
            targets: Labels (B,).
            indices: Which training samples they are (B,), to leave their own keys out; None for samples that are not in
                the bank. Without a bank only two views of one sample need it: a row never counts itself.

        Raises:
            InvalidInput: On wrong shapes or types, or a sample with fewer than k neighbours.
        """
        if features.ndim != 2 or not features.is_floating_point():
            raise InvalidInput(f"features must be floats (B, D); got {features.dtype} {tuple(features.shape)}")
        _check_labels("targets", targets, len(features))
        with torch.autocast(features.device.type, enabled=False):
            z = F.normalize(features if features.dtype == torch.float64 else features.float(), dim=1)
            query_ids, keys, key_targets, key_ids = indices, z, targets, indices
            if self.bank is not None:
                keys, key_targets, key_ids = self.bank.keys.to(z.dtype), self.bank.targets, self.bank.ids
            elif indices is None:
                query_ids = key_ids = torch.arange(len(z), device=z.device)
            return leave_one_out_knn_loss(
                *(z, targets, keys, key_targets, self.k),
                temperature=self.temperature,
                query_ids=query_ids,
                key_ids=key_ids,
                on_empty=self.on_empty,
                reduction=self.reduction,
            )

    def extra_repr(self) -> str:
        """Show the options."""
        return f"k={self.k}, temperature={self.temperature}, on_empty={self.on_empty!r}, reduction={self.reduction!r}"
