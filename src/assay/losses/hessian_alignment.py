"""Hessian alignment: pull the head's gradients and Hessians of all training domains to those of the mean loss.

Paper: "Understanding Hessian Alignment for Domain Generalization" (arXiv:2308.11778), objectives HGP and Hutchinson.
Over domains e = 1..n with losses l_e and gradients g_e and Hessians H_e *with respect to the head only*; a bar is the
mean loss's:

    hgp          mean_e [ alpha |H_e g_e - Hbar gbar|^2 + beta |g_e - gbar|^2 ]
    diagonal     mean_e [ alpha |diag H_e - diag Hbar|^2 + beta |g_e - gbar|^2 ]
    hutchinson   as diagonal, with diag H estimated by mean_t r_t * (H r_t) over random signs r_t

alpha = 0 aligns gradients only. Add lambda times the penalty to the mean loss over domains.

Shapes: n domains of B_e samples, d features, K classes (a head with one output is logistic), P head parameters.

Departures: closed forms for a linear head, so "diagonal" needs no random signs, and its estimate from T signs is biased
upwards by the estimate's variance. H g is a product, not |g| grad |g|, which is undefined at g = 0. Hutchinson's signs
are the same in all domains: the domains' differences are then estimated with less noise. Only a linear head has
"diagonal"; any other head goes through double backward.

Cost with a linear head, beside its forward and backward pass: hgp five products of the size of that forward pass per
domain (two of them without a graph), diagonal two, hutchinson 1 + 2 T; one vector (P,) in memory for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._domains import DomainHead, LinearDomain, deviations, head_domains
from assay.losses._labels import check_reduction, reduce

__all__ = ["HessianAlignmentPenalty", "hessian_alignment_penalty", "hutchinson_diagonal"]

Kind = Literal["hgp", "diagonal", "hutchinson"]


def hutchinson_diagonal(domain: DomainHead, signs: Tensor) -> Tensor:
    """Return the estimate of a Hessian's diagonal (P,), mean_t r_t * (H r_t), from signs r (T, P)."""
    total = torch.zeros_like(domain.gradient)
    for r in signs:
        total = total + r * domain.product(r)
    return total / len(signs)


def hessian_alignment_penalty(
    features: Sequence[Tensor],
    targets: Sequence[Tensor],
    head: nn.Module,
    *,
    kind: Kind = "hgp",
    alpha: float = 1.0,
    beta: float = 1.0,
    num_probes: int = 300,
    detach_reference: bool = True,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the alignment penalty of a step's domains.

    Args:
        features: What the head reads, one (B_e, d) per domain; at least two domains.
        targets: Class indices, one (B_e,) per domain.
        head: Maps features to scores (B_e, K); `torch.nn.Linear` has closed forms.
        kind: "hgp", "diagonal" or "hutchinson".
        alpha: Weight of the Hessians' term, 0 or larger.
        beta: Weight of the gradients' term, 0 or larger.
        num_probes: T, random signs of "hutchinson".
        detach_reference: Whether Hbar gbar, diag Hbar and gbar count as constants (the paper on DomainBed) or are
            differentiated, too (its Coloured MNIST).
        reduction: Over domains: "mean", "sum" (its Coloured MNIST) or "none".
        generator: Draws the signs; only "hutchinson" needs it.

    Returns:
        A scalar, or (n,) with reduction "none".

    Raises:
        InvalidInput: On fewer than two domains, wrong shapes or labels, options out of range, "diagonal" with a head
            that is not linear, or "hutchinson" without a generator.

    Example:
        >>> head = nn.Linear(2, 3)
        >>> z, y = torch.eye(2), torch.tensor([0, 2])
        >>> hessian_alignment_penalty([z, z], [y, y], head).item()  # domains that do not differ
        0.0
    """
    _check_options(kind, alpha, beta, num_probes)
    domains = head_domains(features, targets, head)
    if kind == "diagonal" and alpha > 0 and not isinstance(domains[0], LinearDomain):
        raise InvalidInput(f'"diagonal" needs a torch.nn.Linear head, not {type(head).__name__}; use "hutchinson"')
    signs = _signs(domains[0].gradient, num_probes, generator) if kind == "hutchinson" and alpha > 0 else None

    gradients = [domain.gradient for domain in domains]
    mean_gradient = _mean(gradients, detach_reference)
    penalty = beta * deviations(gradients, mean_gradient)
    if alpha > 0:
        vectors = [_curvature(domain, domain.gradient, signs, kind) for domain in domains]
        reference = _mean(vectors, detach_reference)
        if kind == "hgp":  # the mean loss's product is not the mean of the products
            with torch.set_grad_enabled(torch.is_grad_enabled() and not detach_reference):
                reference = _mean([domain.product(mean_gradient) for domain in domains], detach_reference)
        penalty = penalty + alpha * deviations(vectors, reference)
    return reduce(penalty, reduction)


def _check_options(kind: str, alpha: float, beta: float, num_probes: int) -> None:
    if kind not in get_args(Kind):
        raise InvalidInput(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}")
    if not (0 <= alpha < math.inf and 0 <= beta < math.inf):
        raise InvalidInput(f"alpha and beta must be finite numbers, 0 or larger; got {alpha} and {beta}")
    if num_probes < 1:
        raise InvalidInput(f"num_probes must be at least 1; got {num_probes}")


def _signs(like: Tensor, num_probes: int, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise InvalidInput('"hutchinson" draws random signs: pass a generator, or use "diagonal", which is exact')
    bits = torch.randint(2, (num_probes, len(like)), generator=generator, device=generator.device)
    return (2 * bits - 1).to(like)


def _curvature(domain: DomainHead, gradient: Tensor, signs: Tensor | None, kind: Kind) -> Tensor:
    if signs is not None:
        return hutchinson_diagonal(domain, signs)
    if kind == "diagonal" and isinstance(domain, LinearDomain):
        return domain.diagonal()
    return domain.product(gradient)


def _mean(vectors: Sequence[Tensor], detach: bool) -> Tensor:
    total = vectors[0].detach() if detach else vectors[0]
    for v in vectors[1:]:
        total = total + (v.detach() if detach else v)
    return total / len(vectors)


class HessianAlignmentPenalty(nn.Module):
    """Hessian alignment as a criterion on the domains of a step; see `hessian_alignment_penalty`.

    Args:
        kind: "hgp", "diagonal" or "hutchinson".
        alpha: Weight of the Hessians' term, 0 or larger; 0 aligns gradients only.
        beta: Weight of the gradients' term, 0 or larger.
        num_probes: T, random signs of "hutchinson".
        detach_reference: Whether the mean loss's vectors count as constants.
        reduction: Over domains: "mean", "sum" or "none".

    Raises:
        InvalidInput: On options out of range.

    Example:
        >>> penalty = HessianAlignmentPenalty("diagonal", alpha=1e-3, beta=5e-3)
        >>> z, y = torch.eye(2), torch.tensor([0, 1])
        >>> penalty([z, 2 * z], [y, y], nn.Linear(2, 2)).item() > 0
        True
    """

    def __init__(
        self,
        kind: Kind = "hgp",
        alpha: float = 1.0,
        beta: float = 1.0,
        num_probes: int = 300,
        detach_reference: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_options(kind, alpha, beta, num_probes)
        self.kind: Kind = kind
        self.alpha, self.beta, self.num_probes = alpha, beta, num_probes
        self.detach_reference, self.reduction = detach_reference, check_reduction(reduction)

    def forward(
        self,
        features: Sequence[Tensor],
        targets: Sequence[Tensor],
        head: nn.Module,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the penalty of features (B_e, d) and class indices (B_e,) by domain under a head."""
        return hessian_alignment_penalty(
            features,
            targets,
            head,
            kind=self.kind,
            alpha=self.alpha,
            beta=self.beta,
            num_probes=self.num_probes,
            detach_reference=self.detach_reference,
            reduction=self.reduction,
            generator=generator,
        )

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{self.kind!r}, alpha={self.alpha}, beta={self.beta}, reduction={self.reduction!r}"
