"""All pairs (a, b) with a o b mod p as the class: the small exact task on which networks grok.

Paper: "Grokking at the Edge of Numerical Stability" (arXiv:2501.04697), section on settings: p = 113, a random 40% of
the pairs for training, both numbers one-hot.

Shapes: p^2 pairs; inputs float32 (N, 2 p), targets int64 (N,) in 0..p - 1.

Departure: the paper has no validation data; we set aside a tenth of all pairs, so that tuning never sees test pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.data.dataset import Dataset, Split, stratified_split
from assay.errors import InvalidInput

__all__ = ["modular_arithmetic"]

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "product": torch.mul,
}


def modular_arithmetic(
    p: int = 113,
    *,
    operation: str = "add",
    train_fraction: float = 0.4,
    validation_fraction: float = 0.1,
    generator: torch.Generator | None = None,
) -> Dataset:
    """Return the table of an operation modulo p, split at random.

    Args:
        p: The modulus, at least 2, and the number of classes.
        operation: "add", "subtract" or "product".
        train_fraction: Share of the p^2 pairs to train on, above 0.
        validation_fraction: Share of the p^2 pairs for validation, above 0; the rest is the test split.
        generator: Decides the split; None is a fixed one.

    Raises:
        InvalidInput: On an unknown operation, p below 2, or fractions that leave a split empty.

    Example:
        >>> table = modular_arithmetic(5, train_fraction=0.6)
        >>> len(table.train), len(table.validation), len(table.test), table.input_shape, table.outputs
        (15, 2, 8, (10,), 5)
    """
    if operation not in OPERATIONS:
        raise InvalidInput(f"operation must be one of {', '.join(OPERATIONS)}; got {operation!r}")
    if p < 2:
        raise InvalidInput(f"p must be at least 2; got {p}")
    train, validation = int(p * p * train_fraction), int(p * p * validation_fraction)
    test = p * p - train - validation
    if min(train, validation, test) < 1:
        raise InvalidInput(
            f"fractions {train_fraction} and {validation_fraction} of {p * p} pairs give {train} training, "
            f"{validation} validation and {test} test pairs; every split needs at least 1"
        )
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p)).T
    inputs = torch.cat([F.one_hot(a, p), F.one_hot(b, p)], dim=1).float()
    targets = OPERATIONS[operation](a, b) % p
    # equal labels make the stratified draw a plain random one, as in the paper
    chosen = stratified_split(torch.zeros_like(targets), (train, validation, test), generator)
    splits = (Split(inputs[indices], targets[indices]) for indices in chosen)
    train_split, validation_split, test_split = splits
    return Dataset(f"{operation} mod {p}", train_split, validation_split, test_split, num_classes=p)
