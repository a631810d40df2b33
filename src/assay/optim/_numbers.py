"""Arithmetic on one number per tensor, as floats where that is quicker and as vectors elsewhere, and updates with them.

An optimizer whose step depends on norms needs a few dozen operations on scalars per tensor. On a CPU in eager mode each
costs a hundred times more on a small tensor than on floats; compiled, or on an accelerator, floats would need a wait.
Functions of plain arithmetic (no branches; `x + (x == 0)` where x must not be 0; `x * x` for a square, since Python's
power overflows) serve both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.optim._stepping import per_tensor, widest

__all__ = ["Numbers", "add_quotients", "add_squares", "clear", "largest_entries", "numbers", "write"]

Numbers = list[float] | list[Tensor]


def numbers(function: Callable[..., tuple[Any, ...]], like: list[Tensor], *vectors: Tensor) -> list[Numbers]:
    """Apply a function of scalars to each tensor's numbers.

    Args:
        function: Takes one number per vector, floats or all of them as vectors, and returns a tuple of such.
        like: The n tensors that the numbers belong to.
        vectors: (n,) each; as vectors they are in float64, where the device has it.

    Returns:
        A list of n numbers per result, as `_foreach` operations take them.
    """
    if all(v.is_cpu for v in vectors) and not torch.compiler.is_compiling():
        rows = [function(*row) for row in zip(*(v.tolist() for v in vectors), strict=True)]
        return [list(column) for column in zip(*rows, strict=True)]
    # the counts go to where the norms are: the other way round would wait for them
    device = like[0].device
    moved = [v.to(device, widest(device)) for v in vectors]
    return [per_tensor(torch.zeros_like(moved[0]) + result, like) for result in function(*moved)]


def write(targets: list[Tensor], values: Numbers) -> None:
    """Write numbers into tensors without dimensions."""
    if isinstance(values[0], float):
        torch._foreach_copy_(targets, list(torch.tensor(values, dtype=targets[0].dtype).unbind()))
    else:
        torch._foreach_copy_(targets, values)


def clear(targets: list[Tensor], which: Numbers) -> None:
    """Set tensors to 0 whose number is not 0; by assignment, since 0 times an entry that has overflowed is NaN."""
    if isinstance(which[0], Tensor):
        for target, number in zip(targets, which, strict=True):
            target.masked_fill_(number != 0, 0.0)
    elif any(which):
        torch._foreach_zero_([target for target, number in zip(targets, which, strict=True) if number])


def largest_entries(tensors: list[Tensor]) -> Tensor:
    """Return the largest magnitude in each tensor, (n,), 0 for a tensor without entries; NaN where there is one."""
    pairs = [torch.stack(torch.aminmax(t if t.numel() else t.new_zeros(1))) for t in tensors]
    return torch.stack(pairs).abs().amax(1)


def add_quotients(
    targets: list[Tensor], numerators: list[Tensor], denominators: tuple[Tensor, ...], weights: Numbers
) -> None:
    """Add weight * numerator / denominator to each tensor, in place."""
    if isinstance(weights[0], float):
        torch._foreach_addcdiv_(targets, numerators, denominators, weights)
    else:
        quotients = torch._foreach_div(numerators, denominators)
        torch._foreach_add_(targets, torch._foreach_mul(quotients, weights))


def add_squares(targets: list[Tensor], factors: tuple[Tensor, ...], weights: Numbers) -> None:
    """Add weight * factor^2 to each tensor, in place."""
    if isinstance(weights[0], float):
        torch._foreach_addcmul_(targets, factors, factors, weights)
    else:
        squares = torch._foreach_mul(factors, factors)
        torch._foreach_add_(targets, torch._foreach_mul(squares, weights))
