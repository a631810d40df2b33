"""SOP: each training sample has a sparse noise variable that explains its wrong label, so that the network need not.

Paper: "Robust Training under Label Noise by Over-parameterization" (arXiv:2202.14026), its model and Algorithm 1.

    U = u_i^2 y,  V = v_i^2 (1 - y)          noise: mass added to the given label, mass taken from the others
    q = phi(p + U - stopgrad V)              p = softmax(z); phi keeps entries above eps and makes them sum to 1
    L = -log q_y + |h + U - V - y|^2         y one-hot, h = one-hot of argmax z, a constant

Cross-entropy trains the network and u; the squared distance trains u and v, and never the network. u and v lie in
[-1, 1] and start at N(0, init_std^2). SOP+ adds `consistency` times KL(stopgrad p || p') with p' of another
augmentation, and `balance` times -sum_k log(mean_b q_k) / K.

Shapes: N training samples, B of them in a batch, K classes; scores z (B, K), targets (B,), index (B,), u (N, 1),
v (N, K).

Departures. As in the official code, the squared distance reaches u too (the paper: v only), so rates of u are the
code's. The projection onto [-1, 1] is made where a sample's u and v are next read, in training mode, which is the same
and costs what the batch costs; the code clamps U and V only, and a variable beyond 1 then gets no gradient and never
returns. Gradients of u and v are sparse, for the same reason. Cost: tables of N (K + 1) float32, and about three
softmaxes per step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._labels import label_column, pick, reduce, scatter
from assay.nn._per_sample import check_index, check_sizes, rows, small_normal

__all__ = ["SOPLoss", "sop_loss"]


def _wide(scores: Tensor) -> Tensor:
    """u^2 is 1e-16 at the start, below float16's smallest number."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _project(w: Tensor, eps: float) -> Tensor:
    """Return phi(w): entries at least eps that sum to 1, cut at eps again, so that -log q is at most -log eps."""
    kept = w.clamp(min=eps)
    return (kept / kept.sum(dim=1, keepdim=True)).clamp(eps, 1.0)


def _noise(u: Tensor, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return U and V (B, K) for rows u (B, 1), v (B, K) and one-hot labels (B, K)."""
    if u.shape != (len(y), 1) or v.shape != y.shape:
        raise InvalidInput(
            f"u and v must have shapes ({len(y)}, 1) and {tuple(y.shape)} for these scores; "
            f"got {tuple(u.shape)} and {tuple(v.shape)}"
        )
    return (u.square() * y).clamp(0, 1), (v.square() * (1 - y)).clamp(0, 1)


def _sop_terms(z: Tensor, column: Tensor, u: Tensor, v: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return per-sample losses (B,) and the corrected probabilities q (B, K)."""
    y = scatter(torch.zeros_like(z), column, torch.ones_like(z[:, :1]))
    U, V = _noise(u.to(z.dtype), v.to(z.dtype), y)
    q = _project(z.softmax(dim=1) + U - V.detach(), eps)
    h = torch.zeros_like(z).scatter(1, z.detach().argmax(dim=1, keepdim=True), 1.0)
    return -pick(q, column).log() + (h + U - V - y).square().sum(dim=1), q


def sop_loss(
    scores: Tensor, targets: Tensor, u: Tensor, v: Tensor, eps: float = 1e-4, reduction: str = "mean"
) -> Tensor:
    """Return SOP's loss for the noise variables of a batch.

    Args:
        scores: Logits (B, K).
        targets: The given, perhaps wrong, class indices (B,).
        u: The samples' variables of the given label (B, 1), in [-1, 1].
        v: The samples' variables of the other classes (B, K), in [-1, 1]; the label's own entry is not used.
        eps: Smallest probability.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (B,) with reduction "none", in the scores' type, at least float32.

    Raises:
        InvalidInput: On wrong shapes, float targets or, on a CPU, labels out of range.

    Example:
        >>> scores, targets = torch.tensor([[4.0, 0.0]]), torch.tensor([1])
        >>> nothing, all_of_it = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
        >>> [round(sop_loss(scores, targets, s[:, :1], s).item(), 3) for s in (nothing, all_of_it)]
        [6.018, 0.0]
    """
    column = label_column(scores, targets)
    return reduce(_sop_terms(_wide(scores), column, u, v, eps)[0], reduction)


class SOPLoss(nn.Module):
    """SOP as a criterion that owns the noise variables of a training set; the mean over a batch.

    In training mode it needs the samples' numbers (`assay.data.IndexedDataset` gives them). In evaluation mode and
    without them it scores the network alone, as is right for new samples: -log phi(p)_y.

    Args:
        num_samples: N, the size of the training set.
        num_classes: K.
        init_std: Deviation of the initial u and v.
        eps: Smallest probability; it also bounds the loss of a hopeless sample, and with it its pull.
        consistency: Weight of the agreement with another augmentation; 0.9 in SOP+.
        balance: Weight of the balance of classes; 0.1 in SOP+.
        sparse: Whether gradients of u and v are sparse, as `torch.optim.SGD` takes them and Adam does not.
        generator: Draws the initial u and v; None is a fixed draw.

    Raises:
        InvalidInput: On sizes below 1, a negative number, or eps outside (0, 1/K).

    Example:
        >>> model, criterion = nn.Linear(5, 3), SOPLoss(num_samples=100, num_classes=3)
        >>> groups = [{"params": model.parameters()}, *criterion.param_groups(lr_u=10, lr_v=10)]
        >>> optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        >>> criterion(model(torch.ones(2, 5)), torch.tensor([0, 2]), torch.tensor([17, 4])).backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        init_std: float = 1e-8,
        eps: float = 1e-4,
        consistency: float = 0.0,
        balance: float = 0.0,
        *,
        sparse: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_samples, num_classes)
        if not 0 < eps < 1 / num_classes:
            raise InvalidInput(f"eps must lie between 0 and 1 / {num_classes}; got {eps}")
        if consistency < 0 or balance < 0:
            raise InvalidInput(f"consistency and balance must be 0 or larger; got {consistency} and {balance}")
        generator = generator or torch.Generator().manual_seed(0)
        self.u = small_normal(num_samples, 1, init_std, generator)
        self.v = small_normal(num_samples, num_classes, init_std, generator)
        self.eps, self.consistency, self.balance, self.sparse = eps, consistency, balance, sparse

    def forward(
        self, scores: Tensor, targets: Tensor, index: Tensor | None = None, augmented: Tensor | None = None
    ) -> Tensor:
        """Return the loss of a batch.

        Args:
            scores: Logits (B, K).
            targets: The given class indices (B,).
            index: The samples' numbers (B,) in the training set, 0..N - 1.
            augmented: Logits (B, K) of another augmentation of the same samples, for `consistency`.

        Raises:
            InvalidInput: On wrong shapes or types, numbers or labels out of range (on a CPU), scores of another
                number of classes, an index missing in training mode, or `augmented` without `consistency` or vice
                versa.
        """
        column, z = label_column(scores, targets), _wide(scores)
        if index is None:
            return -pick(_project(z.softmax(dim=1), self._evaluating()), column).log().mean()
        if (augmented is not None) != (self.consistency > 0):
            raise InvalidInput("give augmented= scores exactly when consistency is above 0")
        u, v = self._rows(check_index(index, len(scores)))
        each, q = _sop_terms(z, column, u, v, self.eps)
        loss = each.mean()
        if augmented is not None:
            p = z.detach().softmax(dim=1)
            loss = loss + self.consistency * F.kl_div(_wide(augmented).log_softmax(dim=1), p, reduction="batchmean")
        if self.balance > 0:
            loss = loss - self.balance * q.mean(dim=0).log().mean()
        return loss

    def _evaluating(self) -> float:
        if self.training:
            raise InvalidInput(
                "training needs index=, the samples' numbers in the training set (see assay.data.IndexedDataset); "
                "call criterion.eval() to score new samples without it"
            )
        return self.eps

    def _rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        u, v = (rows(table, index, self.sparse) for table in (self.u, self.v))
        if not self.training:
            return u, v
        with torch.no_grad():
            for table, found in ((self.u, u), (self.v, v)):
                table.index_copy_(0, index, found.clamp_(-1, 1))
        return u, v

    def param_groups(self, lr_u: float = 10.0, lr_v: float = 10.0) -> list[dict[str, Any]]:
        """Return u's and v's groups for `torch.optim.SGD`, without momentum and decay, which would spoil sparsity.

        Args:
            lr_u: Learning rate of u; large, since the loss is a mean over the batch (scale it with the batch).
            lr_v: Learning rate of v.
        """
        plain = {"momentum": 0.0, "weight_decay": 0.0}
        return [{"params": [self.u], "lr": lr_u, **plain}, {"params": [self.v], "lr": lr_v, **plain}]

    @torch.no_grad()
    def noise(self, targets: Tensor) -> Tensor:
        """Return s = U - V (N, K) of the whole training set, given its labels (N,) in order."""
        column = label_column(self.v, targets)
        y = scatter(torch.zeros_like(self.v), column, torch.ones_like(self.u))
        U, V = _noise(self.u, self.v, y)
        return U - V

    @torch.no_grad()
    def flagged(self, threshold: float = 0.5) -> Tensor:
        """Return whether each label (N,) is taken for wrong: u^2, the mass added to it, is above the threshold."""
        return self.u.square().squeeze(1) > threshold

    def extra_repr(self) -> str:
        """Show the options."""
        samples, classes = self.v.shape
        return f"num_samples={samples}, num_classes={classes}, consistency={self.consistency}, balance={self.balance}"
