"""All 4096 patterns of 12 bits on an icosahedron's vertices, with a label that its symmetries leave alone.

The data of Shwartz-Ziv and Tishby (2017, arXiv:1703.00810): X is finite and known, so that information about it can be
computed and not only estimated. The published labels are invariant under the icosahedron's 120 symmetries; the rule

    y = 1 if at least 7 of the 30 edges have a one at both ends

is ours: it has the same symmetries and differs from the published labels in about 2% of the patterns. p(y = 1) is
2158/4096, H(Y) = 0.998 bits, and the number of ones alone decides up to 4 (y = 0) and from 8 on (y = 1).

Shapes: N = 4096 patterns, inputs float32 (N, 12) of zeros and ones, targets int64 (N,).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from assay.data.dataset import Dataset, Split, stratified_split
from assay.errors import InvalidInput

__all__ = ["icosahedron_majority", "icosahedron_patterns"]

PATTERNS = 4096
_MAJORITY = 7  # edges


def _vertices() -> Tensor:
    """Return the 12 vertices (12, 3): the cyclic permutations of (0, +-1, +-golden ratio); edges have length 2."""
    golden = (1 + 5**0.5) / 2
    signs = itertools.product((-1.0, 1.0), (-golden, golden))
    corners = [(0.0, one, phi) for one, phi in signs]
    return torch.tensor([corner[-k:] + corner[:-k] for k in range(3) for corner in corners], dtype=torch.float64)


def icosahedron_patterns() -> tuple[Tensor, Tensor]:
    """Return all patterns (4096, 12), the first bit counting most, and their labels (4096,).

    Example:
        >>> x, y = icosahedron_patterns()
        >>> tuple(x.shape), int(y.sum()), int(y[-1])
        ((4096, 12), 2158, 1)
    """
    bits = torch.arange(PATTERNS)[:, None] >> torch.arange(11, -1, -1) & 1
    vertices = _vertices()
    first, second = (torch.cdist(vertices, vertices).triu() - 2).abs().lt(0.1).nonzero(as_tuple=True)
    edges = (bits[:, first] * bits[:, second]).sum(dim=1)
    return bits.float(), (edges >= _MAJORITY).long()


def icosahedron_majority(
    *, train: int = 3277, validation: int = 409, test: int = 410, generator: torch.Generator | None = None
) -> Dataset:
    """Return the patterns, split at random; 3277 for training are the published 80%.

    Args:
        train: Patterns for training.
        validation: Patterns for validation.
        test: Patterns for testing.
        generator: Decides the split; None is a fixed one.

    Returns:
        Inputs (N, 12), zeros and ones as published and not standardised; labels (N,).

    Raises:
        InvalidInput: If a size is below 1 or together they exceed 4096.

    Example:
        >>> len(icosahedron_majority().train)
        3277
    """
    if min(train, validation, test) < 1 or train + validation + test > PATTERNS:
        raise InvalidInput(
            f"splits of {train}, {validation} and {test} patterns; expected at least 1 each, at most {PATTERNS} in all"
        )
    inputs, targets = icosahedron_patterns()
    chosen = stratified_split(torch.zeros_like(targets), (train, validation, test), generator)
    parts = [Split(inputs[indices], targets[indices]) for indices in chosen]
    return Dataset("icosahedron majority", parts[0], parts[1], parts[2], num_classes=2)
