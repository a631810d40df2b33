"""How far apart two domains are for the classifier's head: gradients, Hessians, and what these say of transfer.

"Understanding Hessian Alignment for Domain Generalization" (arXiv:2308.11778). With l_S, l_T the mean cross-entropy on
two domains as functions of the *head's* parameters (features fixed), g and H their gradients and Hessians,

    head_gradient_distance    |g_S - g_T|
    head_diagonal_distance    |diag H_S - diag H_T|
    head_hessian_distance     |H_S - H_T|_2, the spectral norm
    head_transfer_bound       r |g_S - g_T| + r^2 / 2 |H_S - H_T|_2

The bound is on how much more a head moved by at most r changes one domain's loss than the other's, up to terms of order
r^3; at a common optimum it is attained, since there both gradients are 0.

Symbols: P = K (d + 1) parameters of a linear head with K scores on d features, N samples in both domains.

Conventions: float64, from features in the network's own precision. The spectral norm is Lanczos' largest Ritz value,
which is at most the norm. Cost: one pass over each domain, whose features stay in memory; up to 100 products, each
4 N K d flops.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._domains import LinearDomain
from assay.probes._batches import Batches
from assay.probes.class_statistics import check_labels
from assay.probes.eigenpairs import top_eigenpairs
from assay.probes.view import View

__all__ = ["HeadHessian", "head_hessian_distances"]

KEYS = ("head_gradient_distance", "head_diagonal_distance", "head_hessian_distance", "head_transfer_bound")


class _Difference:
    """H_S - H_T as a linear map."""

    def __init__(self, first: LinearDomain, second: LinearDomain) -> None:
        self._domains = first, second
        P = len(first.gradient)
        self.shape, self.dtype, self.device = (P, P), first.gradient.dtype, first.gradient.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        columns = vectors.reshape(len(vectors), -1).T
        first, second = self._domains
        return torch.stack([first.product(v) - second.product(v) for v in columns], 1).view_as(vectors)


@torch.no_grad()
def head_hessian_distances(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], head: nn.Linear, *, radius: float = 0.1, seed: int = 0
) -> dict[str, float]:
    """Return the four distances of the module's head between two domains.

    Args:
        first: Features (N_S, d) and labels (N_S,) of one domain.
        second: The same of the other.
        head: Maps features to scores (N, K); with a single output its loss is the logistic one.
        radius: r, how far a head may move; above 0.
        seed: Of Lanczos' start.

    Raises:
        InvalidInput: On a radius not above 0, or labels out of range.

    Example:
        >>> z, y = torch.eye(3), torch.arange(3)
        >>> head_hessian_distances((z, y), (z, y), nn.Linear(3, 3))["head_hessian_distance"]
        0.0
    """
    if not 0 < radius < math.inf:
        raise InvalidInput(f"radius must be a finite number above 0; got {radius}")
    weight = head.weight.double()
    bias = None if head.bias is None else head.bias.double()
    domains = []
    for z, y in (first, second):
        scores = nn.functional.linear(z.double(), weight, bias)
        domains.append(LinearDomain(z.double(), scores, y, bias is not None))
    a, b = domains
    gradient = (a.gradient - b.gradient).norm().item()
    diagonal = (a.diagonal() - b.diagonal()).norm().item()
    spectral = abs(top_eigenpairs(_Difference(a, b), seed=seed).values[0].item())
    return dict(zip(KEYS, (gradient, diagonal, spectral, radius * gradient + radius**2 / 2 * spectral), strict=True))


class HeadHessian:
    """Distances between the data that `Watch` has and another domain, as the head sees them.

    Args:
        data: The other domain, in any form that `assay.Watch` takes.
        radius: r of the transfer bound, above 0.
        prefix: Stands before each name, to tell several domains apart.
        batch_size: Samples per forward pass where `data` are not in batches already.
        seed: Of Lanczos' start.

    Raises:
        InvalidInput: On a radius not above 0.

    Example:
        >>> view = View(nn.Sequential(nn.Identity(), nn.Linear(2, 2)))
        >>> x, y = torch.eye(2), torch.arange(2)
        >>> sorted(HeadHessian((2 * x, y)).measure(view, [(x, y)]))[0]
        'head_diagonal_distance'
    """

    dear = True

    def __init__(self, data: Any, radius: float = 0.1, prefix: str = "", batch_size: int = 512, seed: int = 0) -> None:
        if not 0 < radius < math.inf:
            raise InvalidInput(f"radius must be a finite number above 0; got {radius}")
        self.data, self.radius, self.prefix, self.batch_size, self.seed = data, radius, prefix, batch_size, seed
        self.skipped: dict[str, str] = {}

    @torch.no_grad()
    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return the distances by name, NaN where the network has no linear head or is broken.

        Args:
            view: The network; features are what its head reads.
            batches: The first domain.

        Raises:
            InvalidInput: If labels are out of range, or the network's features are unknown.
        """
        self.skipped = {}
        domains = [_collected(view, batches)]
        # A network in float64 may be compared on a domain in float32.
        other = Batches(self.data, self.batch_size, view)
        domains.append(_collected(view, ((_as(x, domains[0][0].dtype), y) for x, y in other)))
        head = view.head()
        reason = "the network has no linear head that gives the scores" if head is None else ""
        if not all(torch.isfinite(z).all() for z, _ in domains):
            reason = "features are not finite"
        names = [f"{self.prefix}_{key}" if self.prefix else key for key in KEYS]
        if reason or head is None:
            self.skipped = dict.fromkeys(names, reason)
            return dict.fromkeys(names, math.nan)
        values = head_hessian_distances(domains[0], domains[1], head, radius=self.radius, seed=self.seed)
        return dict(zip(names, values.values(), strict=True))


def _as(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def _collected(view: View, batches: Iterable[tuple[Any, Tensor]]) -> tuple[Tensor, Tensor]:
    features, targets = [], []
    for x, y in batches:
        seen = view.observe(x)
        check_labels(seen.features, y, max(seen.scores.shape[1], 2))
        features.append(seen.features)
        targets.append(y.to(seen.features.device))
    if not features:
        raise InvalidInput("there are no data; give at least one batch")
    return torch.cat(features), torch.cat(targets)
