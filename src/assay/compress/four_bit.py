"""4-bit numbers by groups, simulated: each entry is replaced by the nearest number that its group's 4-bit format has.

Paper: "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam" (arXiv:2502.17055), its INT4 and FP4 training;
formulas from the official code. In a group, k `outliers` (the largest magnitudes) are kept exactly; of the rest r, with
s the largest magnitude and [lo, hi] the range that r and 0 span,

    INT4, symmetric    q = s / 7 clamp(round(7 x / s), -8, 7)
    INT4, asymmetric   q = d (clamp(round(x / d) + z, 0, 15) - z), d = (hi - lo) / 15, z = clamp(round(-lo / d), 0, 15)
    FP4, uniform9      q = s / 4 round(4 x / s): what the official code's "E1M2" comes to, nine levels
    FP4, e2m1          q = s / 6 e2m1(6 x / s) with e2m1's magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6, ties to even

Shapes: x (..., d). Groups are `group` consecutive entries of the last dimension, the last one of a row perhaps shorter.

Departures: 0 always counts into the asymmetric range, since the official formula clips a group of one sign to its
range; groups with both signs are not affected. Entries that tie with s are no outliers: they are the format's largest
number, exactly. Half precision is rounded once, from float32. A group with a NaN comes back as NaN.
Cost: about ten elementwise passes, and two reductions per outlier; nothing is packed, so it saves no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["FP4", "Int4", "straight_through"]

LEAST_RANGE = 1e-5  # the official code's floors, so that a group of zeros has a scale
LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class Int4:
    """16 integers with one scale per group.

    Args:
        group: Entries that share a scale, at least 1.
        outliers: Entries per group, of largest magnitude, that are kept exactly; fewer than `group`.
        symmetric: Scale by the largest magnitude, 0 in the middle, as for activations; else between the least and the
            largest entry, as for weights.
        stochastic: Add a uniform number from [-1/2, 1/2] before rounding, which makes it unbiased within the range.

    Raises:
        InvalidInput: If a number is out of its range.

    Example:
        >>> Int4(group=4, outliers=1, symmetric=True)(torch.tensor([100.0, 7.0, 2.6, -1.2]))
        tensor([100.,   7.,   3.,  -1.])
    """

    group: int = 256
    outliers: int = 0
    symmetric: bool = False
    stochastic: bool = False

    def __post_init__(self) -> None:
        _check(self.group, self.outliers)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return x (..., d) in this format's numbers, in its own type.

        Args:
            x: Floating point.
            generator: For stochastic rounding, on x's device.

        Raises:
            InvalidInput: If x has no last dimension or is not floating point, or the generator is missing.
        """
        groups = _grouped(x, self.group)
        noise = self._noise(groups, generator)
        if self.symmetric:
            scale, kept = _scale(groups, self.outliers)
            values = _symmetric(groups, scale, noise)
        else:
            kept = _scale(groups, self.outliers)[1] if self.outliers else None
            values = _asymmetric(groups if kept is None else torch.where(kept, 0.0, groups), noise)
        return _flat(groups, values, kept, x)

    def _noise(self, groups: Tensor, generator: torch.Generator | None) -> Tensor | float:
        if not self.stochastic:
            return 0.0
        if generator is None:
            raise InvalidInput("stochastic rounding needs a generator; pass torch.Generator().manual_seed(0)")
        return torch.rand(groups.shape, generator=generator, dtype=groups.dtype, device=groups.device) - 0.5


@dataclass(frozen=True)
class FP4:
    """4-bit floating point with one scale per group.

    Args:
        group: Entries that share a scale, at least 1.
        outliers: Entries per group, of largest magnitude, that are kept exactly; fewer than `group`.
        grid: "uniform9", what the official code computes, or "e2m1", the format of the hardware.

    Raises:
        InvalidInput: If a number is out of its range or the grid is unknown.

    Example:
        >>> x = torch.tensor([6.0, 2.4, -3.4, 0.8])
        >>> FP4(group=4, outliers=0, grid="e2m1")(x), FP4(group=4, outliers=0)(x)
        (tensor([ 6.,  2., -3.,  1.]), tensor([ 6.0000,  3.0000, -3.0000,  1.5000]))
    """

    group: int = 256
    outliers: int = 2
    grid: Literal["uniform9", "e2m1"] = "uniform9"

    def __post_init__(self) -> None:
        _check(self.group, self.outliers)
        if self.grid not in ("uniform9", "e2m1"):
            raise InvalidInput(f"grid must be uniform9 or e2m1, not {self.grid!r}")

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return x (..., d) in this format's numbers, in its own type; the generator is not used.

        Raises:
            InvalidInput: If x has no last dimension or is not floating point.
        """
        groups = _grouped(x, self.group)
        scale, kept = _scale(groups, self.outliers)
        if self.grid == "uniform9":
            values = (groups * (4 / scale)).round_() * (scale / 4)
        else:
            values = _e2m1(groups * (6 / scale)) * (scale / 6)
        return _flat(groups, values, kept, x)


def straight_through(x: Tensor, form: Int4 | FP4, generator: torch.Generator | None = None) -> Tensor:
    """Return x in a format's numbers, with the gradient of the identity.

    Args:
        x: (..., d).
        form: An `Int4` or `FP4`.
        generator: For stochastic rounding.

    Example:
        >>> x = torch.tensor([0.3, 1.0], requires_grad=True)
        >>> straight_through(x, FP4(group=2, outliers=0)).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """
    return _StraightThrough.apply(x, form, generator)


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, form: Int4 | FP4, generator: torch.Generator | None) -> Tensor:
        return form(x, generator)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


def _check(group: int, outliers: int) -> None:
    for name, value, least in (("group", group, 1), ("outliers", outliers, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidInput(f"{name} must be a whole number of at least {least}, not {value!r}")
    if outliers >= group:
        raise InvalidInput(f"a group of {group} entries must have fewer than {group} outliers, not {outliers}")


def _grouped(x: Tensor, group: int) -> Tensor:
    """Return x as (..., n, group) in at least float32, rows filled up with zeros."""
    if x.dim() < 1 or not x.is_floating_point():
        raise InvalidInput(f"expected a floating-point tensor (..., d), got {x.dtype} of shape {tuple(x.shape)}")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    missing = -x.shape[-1] % group
    wide = F.pad(wide, (0, missing)) if missing else wide
    return wide.unflatten(-1, (wide.shape[-1] // group, group))


def _flat(groups: Tensor, values: Tensor, kept: Tensor | None, x: Tensor) -> Tensor:
    """Return the values, with kept entries of the groups in their place, in x's shape and type."""
    values = values if kept is None else torch.where(kept, groups, values)
    return values.flatten(-2)[..., : x.shape[-1]].to(x.dtype)


def _scale(groups: Tensor, outliers: int) -> tuple[Tensor, Tensor | None]:
    """Return the largest magnitude (..., n, 1) but for the outliers, and which entries these are, if any."""
    rest = sizes = groups.abs()
    for _ in range(outliers):  # twice as fast as topk for the usual two
        rest = rest.scatter(-1, rest.max(-1, keepdim=True).indices, -1.0)
    largest = rest.amax(-1, keepdim=True)
    return largest.clamp(min=LEAST_SCALE), sizes > largest if outliers else None


def _symmetric(groups: Tensor, scale: Tensor, noise: Tensor | float) -> Tensor:
    return (groups * (7 / scale) + noise).round_().clamp(-8, 7) * (scale / 7)


def _asymmetric(rest: Tensor, noise: Tensor | float) -> Tensor:
    low, high = rest.amin(-1, keepdim=True).clamp(max=0), rest.amax(-1, keepdim=True).clamp(min=0)
    step = (high - low).clamp(min=LEAST_RANGE) / 15
    zero = (-low / step).round_().clamp(0, 15)
    return (rest / step + noise).round_().add_(zero).clamp(0, 15).sub_(zero) * step


def _e2m1(x: Tensor) -> Tensor:
    """Return the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with x's sign; torch rounds ties to even, as the format does."""
    size = x.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return (x / step).round_() * step
