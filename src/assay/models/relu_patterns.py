"""Which samples a hidden ReLU can be active on: the activation patterns of a data set, sampled or all of them.

Bai, Gautam and Sojoudi (2023, arXiv:2201.01965), section 2 and the sampling step of their algorithms; a pattern is the
diagonal of D_i = diag(1[X u >= 0]) for some u.

Shapes: n samples, d features, P patterns; X (n, d), patterns (P, n). With r = rank X there are at most
2 sum_{k<r} C(n-1, k) cells of the arrangement of hyperplanes x_k u = 0, and as many for data in general position.

Departures: u on a hyperplane is no cell of its own. Its ReLU is that of a neighbouring cell's closed cone, so the
convex program loses nothing; a row of zeros counts as active, as >= says. For perturbed data the paper also draws from
moved data; here patterns are left out that hold nothing but zeros in the robust program.
Cost: sampling O(n d) per draw. Enumeration goes through the C(n, r-1) rays in which r-1 hyperplanes meet.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["activation_patterns"]

_MOST_CELLS = 100_000
_MOST_DRAWS = 1000
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
            subset of what more draws give. With a perturbation, how many distinct patterns to look for.
        exhaustive: Return all patterns that have a cell of their own, sorted; nothing is drawn.
        perturbation: Radius by which features move, a number or (d,) with 0 for the column of ones. Above 0, a draw
            is kept if no move changes its pattern: |x_k u| >= sum_j radius_j |u_j| for all samples. Patterns without
            such a u hold only zeros in the robust program. Draws end with n patterns, or after 1000 n draws.
        generator: Decides the draws; None is a fixed one.

    Returns:
        Boolean (P, n), one pattern per row.

    Raises:
        InvalidInput: If the data aren't a finite matrix, n is below 1, the radius has another shape or is below 0,
            there are too many patterns to enumerate, or no draw keeps its pattern under the perturbation.

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
    radius = torch.as_tensor(perturbation, dtype=torch.float64).cpu()
    if radius.shape not in ((), X.shape[1:]) or not bool((radius >= 0).all()):
        raise InvalidInput(f"perturbation must be 0 or larger, one number or ({X.shape[1]},); got {perturbation}")
    generator = generator or torch.Generator().manual_seed(0)
    drawn = _draw_robust if bool((radius > 0).any()) else _draw
    found = list(itertools.islice(drawn(X.double().cpu(), n, radius, generator), n))
    if not found:
        raise InvalidInput(
            f"none of {_MOST_DRAWS * n} draws keeps its side of all {len(X)} samples under that perturbation; lower it"
        )
    return torch.tensor(found, dtype=torch.bool, device=X.device)


def _draw(X: Tensor, n: int, radius: Tensor, generator: torch.Generator) -> Iterator[tuple[bool, ...]]:
    """Return the distinct patterns of n draws."""
    # one by one: a longer draw need not begin as a shorter one does
    drawn = torch.stack([torch.randn(X.shape[1], dtype=X.dtype, generator=generator) for _ in range(n)])
    return iter(dict.fromkeys(map(tuple, (drawn @ X.T >= 0).tolist())))


def _draw_robust(X: Tensor, n: int, radius: Tensor, generator: torch.Generator) -> Iterator[tuple[bool, ...]]:
    """Yield distinct patterns of draws that keep their side of every sample wherever it moves."""
    radius = radius.expand(X.shape[1])
    seen: set[tuple[bool, ...]] = set()
    for _ in range(n):
        drawn = torch.randn(_MOST_DRAWS, X.shape[1], dtype=X.dtype, generator=generator)
        sides = drawn @ X.T
        kept = (sides.abs() >= (drawn.abs() @ radius)[:, None]).all(dim=1)
        for pattern in map(tuple, (sides[kept] >= 0).tolist()):
            if pattern not in seen:
                seen.add(pattern)
                yield pattern


def _cells(X: Tensor) -> Tensor:
    """Return the patterns of all cells of the arrangement, sorted; a row of zeros is active in all."""
    scale = X.abs().amax(dim=0)
    X = X / torch.where(scale > 0, scale, 1)  # a column's scale changes u, not the patterns
    length = X.norm(dim=1)
    moving = length > 0
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
    cells = 2 * sum(math.comb(n - 1, k) for k in range(r))
    if cells > _MOST_CELLS:
        raise InvalidInput(
            f"{n} samples of rank {r} may have {cells} patterns, more than {_MOST_CELLS}; sample patterns instead"
        )
    if r == n:
        return set(itertools.product((False, True), repeat=n))
    X = X @ basis[:r].T
    if r == 1:
        positive = tuple((X[:, 0] > 0).tolist())
        return {positive, tuple(not sign for sign in positive)}
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
