"""Which samples a hidden ReLU can be active on: the activation patterns of a data set, sampled or all of them.

Bai, Gautam and Sojoudi (2023, arXiv:2201.01965), section 2 and the sampling step of their algorithms; a pattern is the
diagonal of D_i = diag(1[X u >= 0]) for some u.

Shapes: n samples, d features, P patterns; X (n, d), patterns (P, n). With r = rank X there are at most
2 sum_{k<r} C(n-1, k) cells of the arrangement of hyperplanes x_k u = 0, and as many for data in general position.

Departures: u on a hyperplane is no cell of its own. Its ReLU is that of a neighbouring cell's closed cone, so the
convex program loses nothing; a row of zeros counts as active, as >= says.
Cost: sampling O(n d P). Enumeration goes through the C(n, r-1) rays in which r-1 hyperplanes meet.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["activation_patterns"]

_MOST_RAYS = 50_000
_TIE = 1e-9


def activation_patterns(
    X: Tensor,
    n: int = 50,
    *,
    exhaustive: bool = False,
    perturbation: float | Tensor = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return distinct activation patterns of the data, in the order in which they were drawn.

    Args:
        X: Data (n, d), with a column of ones if neurons shall have biases.
        n: Number of draws u ~ N(0, I); equal patterns are kept once, so that the first draws of one generator give a
            subset of what more draws give.
        exhaustive: Return all patterns that have a cell of their own, sorted; nothing is drawn.
        perturbation: Radius by which features move, a number or (d,) with 0 for the column of ones. Above 0, every
            second draw repeats the vector before it on data moved to a random corner of the box around it.
        generator: Decides the draws; None is a fixed one.

    Returns:
        Boolean (P, n), one pattern per row.

    Raises:
        InvalidInput: If the data aren't a finite matrix, n is below 1, or there are too many rays to enumerate.

    Example:
        >>> activation_patterns(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), exhaustive=True).int().tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    if X.ndim != 2 or X.numel() == 0 or not bool(torch.isfinite(X).all()):
        raise InvalidInput(f"expected finite data (n, d) with n and d above 0; got shape {tuple(X.shape)}")
    if exhaustive:
        return _cells(X.double().cpu()).to(X.device)
    if n < 1:
        raise InvalidInput(f"n, the number of draws, must be at least 1, not {n}")
    drawn = _draw(X.double().cpu(), n, torch.as_tensor(perturbation, dtype=torch.float64).cpu(), generator)
    distinct = dict.fromkeys(map(tuple, drawn.int().tolist()))
    return torch.tensor(list(distinct), dtype=torch.bool, device=X.device)


def _draw(X: Tensor, n: int, radius: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return the pattern of each draw (n draws, samples), equal ones included."""
    generator = generator or torch.Generator().manual_seed(0)

    def direction() -> Tensor:  # one by one: a longer draw need not begin as a shorter one does
        return torch.randn(X.shape[1], dtype=X.dtype, generator=generator)

    if not bool((radius > 0).any()):
        return torch.stack([direction() for _ in range(n)]) @ X.T >= 0
    rows = []
    for _ in range(math.ceil(n / 2)):
        u = direction()
        corner = torch.randint(2, X.shape, generator=generator) * 2 - 1
        rows += [X @ u >= 0, (X + radius * corner) @ u >= 0]
    return torch.stack(rows[:n])


def _cells(X: Tensor) -> Tensor:
    """Return the patterns of all cells of the arrangement, sorted; a row of zeros is active in all."""
    length = X.norm(dim=1)
    moving = length > _TIE * length.max()
    if not moving.any():
        return torch.ones(1, len(X), dtype=torch.bool)
    found = torch.tensor(sorted(_arrangement(X[moving] / length[moving, None])), dtype=torch.bool)
    cells = torch.ones(len(found), len(X), dtype=torch.bool)
    cells[:, moving] = found
    return cells


def _arrangement(X: Tensor) -> set[tuple[bool, ...]]:
    """Return the sign patterns of the cells; rows of X have length 1.

    In coordinates of the row space every cell has an edge: a ray on which r-1 independent hyperplanes meet. Around a
    ray the cells are those of the hyperplanes through it, of rank r-1; all other rows have the ray's sign.
    """
    n = len(X)
    _, values, basis = torch.linalg.svd(X, full_matrices=False)
    r = int((values > _TIE * values[0]).sum())
    if r == n:
        return set(itertools.product((False, True), repeat=n))
    X = X @ basis[:r].T
    if r == 1:
        positive = tuple((X[:, 0] > 0).tolist())
        return {positive, tuple(not sign for sign in positive)}
    if math.comb(n, r - 1) > _MOST_RAYS:
        raise InvalidInput(
            f"{n} samples of rank {r} have {math.comb(n, r - 1)} rays, more than {_MOST_RAYS}; sample patterns instead"
        )
    found: set[tuple[bool, ...]] = set()
    seen: set[tuple[int, ...]] = set()
    for chosen in itertools.combinations(range(n), r - 1):
        _, values, basis = torch.linalg.svd(X[list(chosen)])
        if values[-1] > _TIE:
            _add_around(X, basis[-1], found, seen)
    return found


def _add_around(X: Tensor, ray: Tensor, found: set[tuple[bool, ...]], seen: set[tuple[int, ...]]) -> None:
    """Add the cells around a ray and around its opposite, unless the ray was met before."""
    side = X @ ray
    ties = tuple((side.abs() <= _TIE).nonzero().flatten().tolist())
    if ties in seen:
        return
    seen.add(ties)
    for local in _arrangement(X[list(ties)]):
        for signs in ((side > 0).tolist(), (side < 0).tolist()):
            for k, sign in zip(ties, local, strict=True):
                signs[k] = sign
            found.add(tuple(signs))
