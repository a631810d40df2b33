"""The group-rational activation in blocks of rows that fit into the cache, on any device, with x alone saved.

Paper: "FlashKAT" (arXiv:2505.13813): let one worker own a tile, sum the coefficients' gradients inside it, and add only
the tiles' sums. Here a block of rows is the tile; its sums are rounded to the working dtype, and the blocks' sums are
added in float64 in a fixed order, so gradients are exact to the tile's rounding and the same in every run.

Shapes: x (R, D) in any floating dtype and with any strides; a (G, m + 1), b (G, n) in the working dtype.

Two bodies for a block. `compiled=False` writes each step of `formulas.py` into one of a few buffers that all blocks
share: PyTorch's own operators, several times faster than autograd's plain version, since temporaries stay in the cache.
`compiled=True` has `torch.compile` fuse the formulas, once per process, which is several times faster again.

Departure: the paper's tile is 64 rows of one group, for a GPU's shared memory; a CPU's cache takes more.
Cost: reads x twice and the upstream gradient once; memory beyond result and gradient: 6 blocks (1.5 to 3 MiB a thread).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from assay.kernels._compiled_bodies import compiled_body
from assay.kernels.rational_activation.formulas import rational_gradients_into, rational_into

__all__ = ["group_rational_blocked", "group_rational_gradients_blocked"]

BLOCK_ELEMENTS = {False: 2**17, True: 2**18}  # of one buffer, per thread, plain and compiled


@torch.no_grad()
def group_rational_blocked(x: Tensor, a: Tensor, b: Tensor, *, compiled: bool = False) -> Tensor:
    """Return F(x) (R, D) in x's dtype.

    Args:
        x: (R, D).
        a: (G, m + 1).
        b: (G, n).
        compiled: Whether `torch.compile` fuses the steps.
    """
    result = x.new_empty(x.shape)
    whole, inputs, b = _grouped(result, a), _grouped(x, a), b.abs()
    body = compiled_body(rational_into) if compiled else _Buffers(3, inputs, a).rational_into
    for rows in _blocks(x, compiled):
        body(whole[rows], inputs[rows], a, b)
    return result


@torch.no_grad()
def group_rational_gradients_blocked(
    upstream: Tensor, x: Tensor, a: Tensor, b: Tensor, *, compiled: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients dx (R, D) in x's dtype, da (G, m + 1) and db (G, n).

    Args:
        upstream: (R, D), the gradient by the result.
        x: (R, D).
        a: (G, m + 1).
        b: (G, n).
        compiled: Whether `torch.compile` fuses the steps.
    """
    result = x.new_empty(x.shape)
    whole, upstreams, inputs = _grouped(result, a), _grouped(upstream, a), _grouped(x, a)
    body = compiled_body(rational_gradients_into) if compiled else _Buffers(6, inputs, a).rational_gradients_into
    magnitude = b.abs()
    sums = [body(whole[rows], upstreams[rows], inputs[rows], a, magnitude) for rows in _blocks(x, compiled)]
    total = torch.stack(sums).sum(0, dtype=torch.float64) if sums else a.new_zeros(a.shape[1] + b.shape[1], len(a))
    of_numerator, of_denominator = total.to(a.dtype).t().split([a.shape[1], b.shape[1]], 1)
    return result, of_numerator.contiguous(), torch.where(b < 0, of_denominator, -of_denominator)


def _grouped(tensor: Tensor, a: Tensor) -> Tensor:
    """View (R, D) as (R, G, D_g), whatever the strides, without its history."""
    return tensor.detach().unflatten(1, (len(a), tensor.shape[1] // len(a)))


def _blocks(x: Tensor, compiled: bool) -> Iterator[slice]:
    """Yield slices of nearly equal numbers of rows, of `BLOCK_ELEMENTS` elements and some more on average."""
    rows = x.shape[0]
    number = _number_of_blocks(x, compiled)
    for i in range(number):
        yield slice(rows * i // number, rows * (i + 1) // number)


def _number_of_blocks(x: Tensor, compiled: bool) -> int:
    size = BLOCK_ELEMENTS[compiled] * torch.get_num_threads() if x.device.type == "cpu" else 2**24
    return min(x.shape[0], -(-x.numel() // size))


class _Buffers:
    """The formulas in steps that each write into a buffer, one block at a time.

    A buffer is laid out (G, rows, D_g), so that a group's coefficient meets a long run of elements.
    """

    def __init__(self, number: int, inputs: Tensor, a: Tensor) -> None:
        rows, groups, channels = inputs.shape
        number_of_blocks = max(1, _number_of_blocks(inputs.flatten(1), compiled=False))
        self.buffers = a.new_empty(number, groups, -(-rows // number_of_blocks), channels)

    def rational_into(self, result: Tensor, x: Tensor, a: Tensor, b: Tensor) -> None:
        """Write F(x) into `result`."""
        z, above, below = self.buffers[:, :, : len(x)]
        z.copy_(x.transpose(0, 1))
        _horner_(z, _columns(a), above)
        _horner_(z.abs_(), _with_one(b), below)
        torch.div(above, below, out=result.transpose(0, 1))

    def rational_gradients_into(self, result: Tensor, upstream: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Write dx into `result`; return the sums of da and -sign(b) db, (m + 1 + n, G)."""
        z, distance, above, above_slope, below, below_slope = self.buffers[:, :, : len(x)]
        torch.add(x.transpose(0, 1), 0.0, out=z)  # not a copy: this turns -0 into 0, whose sign is 1
        _horner_(z, _columns(a), above, above_slope)
        _horner_(torch.abs(z, out=distance), _with_one(b), below, below_slope)
        below_slope.copysign_(z)
        of_below = above.div_(below)
        of_above = torch.div(upstream.transpose(0, 1), below, out=below)
        of_below.mul_(of_above)
        above_slope.mul_(of_above)
        torch.addcmul(above_slope, of_below, below_slope, value=-1, out=result.transpose(0, 1))
        sums = [of_above.sum((1, 2))]
        for _ in range(a.shape[1] - 1):
            sums.append(of_above.mul_(z).sum((1, 2)))
        for _ in range(b.shape[1]):
            sums.append(of_below.mul_(distance).sum((1, 2)))
        return torch.stack(sums)


def _columns(coefficients: Tensor) -> list[Tensor]:
    """Return the columns of (G, k) as (G, 1, 1)."""
    return [column[:, None, None] for column in coefficients.unbind(1)]


def _with_one(b: Tensor) -> list[Tensor]:
    return [b.new_ones(()), *_columns(b)]


def _horner_(x: Tensor, coefficients: list[Tensor], value: Tensor, slope: Tensor | None = None) -> None:
    """Overwrite `value` with the polynomial at x, and `slope` with its derivative."""
    *lower, leading = coefficients
    value.copy_(leading)
    if slope is not None:
        slope.zero_()
    for coefficient in reversed(lower):
        if slope is not None:
            torch.addcmul(value, slope, x, out=slope)
        torch.addcmul(coefficient, value, x, out=value)
