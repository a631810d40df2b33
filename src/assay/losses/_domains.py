"""What penalties on several domains share: a look at the input, and the head's loss and its derivatives by domain.

A head with K >= 2 outputs has the softmax cross-entropy; one with a single output the logistic loss with labels 0 and 1
(the softmax of scores 0 and s). Derivatives are by the head's parameters, flat and in their order: P numbers.

For scores W z_i + b, p_i = softmax, r_i = p_i - onehot(y_i) and z_i with a 1 appended for the bias:

    g = mean r_i z_i^T,   H v = mean s_i z_i^T with s_i = p_i * a_i - p_i <p_i, a_i>, a_i = V z_i,
    diag H [k, j] = mean p_ik (1 - p_ik) z_ij^2

Any other head goes through autograd's double backward. All of it is differentiable in features and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._labels import label_column, pick

__all__ = [
    "DomainHead",
    "LinearDomain",
    "check_features",
    "deviations",
    "head_domains",
    "head_scores",
    "linear_domains",
    "mean_losses",
    "residuals",
]


def check_features(features: Sequence[Tensor]) -> list[Tensor]:
    """Return the domains' features if they are two or more matrices of one width, each with a sample."""
    if isinstance(features, Tensor):
        raise InvalidInput("features must be a list with one (B_e, d) per domain, not one tensor; split it by domain")
    if len(features) < 2:
        raise InvalidInput(f"got {len(features)} domain(s); a penalty across domains needs at least 2 in every step")
    for e, z in enumerate(features):
        if z.ndim != 2 or len(z) == 0 or z.shape[1] != features[0].shape[1]:
            raise InvalidInput(
                f"features of domain {e} must have shape (B_e, {features[0].shape[-1]}) with B_e >= 1; "
                f"got {tuple(z.shape)}; leave empty domains out"
            )
    return list(features)


def head_scores(features: Sequence[Tensor], targets: Sequence[Tensor], head: nn.Module) -> list[Tensor]:
    """Return scores (B_e, K) of each domain after a check of features and targets."""
    features = check_features(features)
    if isinstance(targets, Tensor) or len(targets) != len(features):
        raise InvalidInput(f"targets must be a list with one tensor (B_e,) for each of the {len(features)} domains")
    scores = [head(z) for z in features]
    for s, y in zip(scores, targets, strict=True):
        label_column(s, y)
    return scores


def class_scores(scores: Tensor) -> Tensor:
    """Return scores of two classes or more: a single score s stands for 0 and s."""
    return F.pad(scores, (1, 0)) if scores.shape[1] == 1 else scores


def mean_losses(scores: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return each domain's mean cross-entropy, (n,)."""
    log_p = [F.log_softmax(class_scores(s), dim=1) for s in scores]
    return torch.stack([-pick(p, y.long()[:, None]).mean() for p, y in zip(log_p, targets, strict=True)])


def residuals(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities p and p - onehot(y), both (B, K) with the columns of the scores."""
    full = class_scores(scores)
    p = F.softmax(full, dim=1)
    column = label_column(full, targets)
    pick(full, column)  # a label out of range is said in one line
    r = p - torch.zeros_like(p).scatter(1, column, 1.0)
    return p[:, -scores.shape[1] :], r[:, -scores.shape[1] :]


class DomainHead(Protocol):
    """The mean loss of one domain as a function of the head."""

    gradient: Tensor

    def product(self, vector: Tensor) -> Tensor:
        """Return the Hessian times a vector (P,)."""
        ...


class LinearDomain:
    """Closed forms for a linear head; `gradient` (P,)."""

    def __init__(self, features: Tensor, scores: Tensor, targets: Tensor, bias: bool) -> None:
        self.features, self.bias = features, bias
        self.p, self.r = residuals(scores, targets)
        self.gradient = self._outer(self.r)

    def _outer(self, coefficients: Tensor, *, squared: bool = False) -> Tensor:
        """Return mean c_i z_i^T and mean c_i, flat; with z_i^2 for z_i where asked."""
        z = self.features.square() if squared else self.features
        c = coefficients / len(z)
        weight = (c.T @ z).flatten()
        return torch.cat([weight, c.sum(dim=0)]) if self.bias else weight

    def product(self, vector: Tensor) -> Tensor:
        """Return the Hessian times a vector (P,)."""
        K, d = self.p.shape[1], self.features.shape[1]
        a = F.linear(self.features, vector[: K * d].view(K, d), vector[K * d :] if self.bias else None)
        return self._outer(self.p * a - self.p * (self.p * a).sum(dim=1, keepdim=True))

    def diagonal(self) -> Tensor:
        """Return the Hessian's diagonal (P,)."""
        return self._outer(self.p * (1 - self.p), squared=True)

    def variance(self) -> Tensor:
        """Return the variance of the samples' gradients, coordinate by coordinate, (P,)."""
        return self._outer(self.r.square(), squared=True) - self.gradient.square()


class _AutogradDomain:
    """Any head, by double backward."""

    def __init__(self, loss: Tensor, head: nn.Module) -> None:
        self._parameters = [p for p in head.parameters() if p.requires_grad]
        if not self._parameters:
            raise InvalidInput("the head has no trainable parameters; pass the module that maps features to scores")
        self._gradients = self._differentiate([loss], None)
        self.gradient = torch.cat([g.flatten() for g in self._gradients])

    def _differentiate(self, outputs: Sequence[Tensor], vectors: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, self._parameters, vectors, create_graph=True, materialize_grads=True)

    def product(self, vector: Tensor) -> Tensor:
        """Return the Hessian times a vector (P,), which counts as a constant of the head here."""
        pieces = vector.split([p.numel() for p in self._parameters])
        shaped = [v.view_as(p) for v, p in zip(pieces, self._parameters, strict=True)]
        with torch.enable_grad():
            products = self._differentiate(self._gradients, shaped)
        return torch.cat([h.flatten() for h in products])


def is_linear(head: nn.Module) -> bool:
    """Return whether the closed forms hold; a subclass may have another forward pass."""
    return type(head) is nn.Linear


def head_domains(features: Sequence[Tensor], targets: Sequence[Tensor], head: nn.Module) -> Sequence[DomainHead]:
    """Return the domains' losses as functions of the head, after a check of the input."""
    if is_linear(head):
        return linear_domains(features, targets, head)
    with torch.enable_grad():  # the derivatives are needed even where no graph of the penalty is
        losses = mean_losses(head_scores(features, targets, head), targets)
        return [_AutogradDomain(loss, head) for loss in losses]


def linear_domains(features: Sequence[Tensor], targets: Sequence[Tensor], head: nn.Module) -> list[LinearDomain]:
    """Return the domains under a linear head.

    Raises:
        InvalidInput: If the head is no `torch.nn.Linear`.
    """
    if not isinstance(head, nn.Linear) or not is_linear(head):
        raise InvalidInput(f"this penalty has a closed form for a torch.nn.Linear head only; got {type(head).__name__}")
    scores = head_scores(features, targets, head)
    bias = head.bias is not None
    return [LinearDomain(z, s, y, bias) for z, s, y in zip(features, scores, targets, strict=True)]


def deviations(vectors: Sequence[Tensor], reference: Tensor) -> Tensor:
    """Return the squared distance of each vector from the reference, (n,)."""
    return torch.stack([(v - reference).square().sum() for v in vectors])
