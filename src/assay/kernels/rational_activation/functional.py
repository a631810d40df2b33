"""`group_rational` as users call it: checks around the operator, and the choice whether to compile."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.kernels._compiled_bodies import worth_compiling
from assay.kernels._derivatives import refuse_forward_mode
from assay.kernels.rational_activation.op import group_rational_op

__all__ = ["group_rational"]


def group_rational(x: Tensor, numerator: Tensor, denominator: Tensor, *, compiled: bool | None = None) -> Tensor:
    r"""Safe rational activation with coefficients per group of channels, saving nothing but its input for backward.

    Group $g$ of $D/G$ neighbouring channels has coefficients $a$ (degree $m$) and $b$ (degree $n$):
    $F(x) = \sum_{i=0}^m a_i x^i \,/\, (1 + \sum_{j=1}^n |b_j|\,|x|^j)$. The denominator is at least 1, so there are no
    poles. At 0, where $|x|$ and $|b_j|$ have no slope, gradients take the one from above, so that coefficients that
    start at 0 learn.

    Computed in float32 for half-precision inputs, under autocast too. Gradients of the coefficients are summed per
    block of rows and then in float64, in a fixed order: the same in every run, and without the rounding error of one
    running sum. Powers overflow: in float32 $x^5$ does from $|x| \approx 5\cdot10^7$ on.

    Args:
        x: (..., D), floating point.
        numerator: (G, m + 1) or (1, m + 1), lowest power first, in x's dtype, or in float32 for half-precision x.
        denominator: (G, n) or (1, n) with n at least 1, like `numerator`; its signs play no role.
        compiled: On a CPU, whether `torch.compile` fuses the steps: 2 to 3 times faster, after some ten seconds in
            the first call. By default it does for at least 2^22 elements (2^18 inside a graph of `torch.compile`) where
            there is a C++ compiler. Of no effect on a GPU, where Triton's kernels run if Triton is installed.

    Returns:
        F(x), of x's shape and dtype.

    Raises:
        InvalidInput: If shapes, dtypes or devices do not fit.

    Example:
        >>> x = torch.linspace(-1, 1, 8).view(2, 4)
        >>> identity, half = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.5])
        >>> group_rational(x, torch.stack([identity, half]), torch.zeros(1, 1))[1]
        tensor([0.1429, 0.4286, 0.3571, 0.5000])
    """
    _check(x, numerator, denominator)
    refuse_forward_mode("group_rational", x, numerator, denominator)
    rows = x.reshape(-1, x.shape[-1])
    if compiled is None:
        compiled = worth_compiling(x)
    return group_rational_op(rows, numerator, denominator, compiled).view(x.shape)


def _check(x: Tensor, numerator: Tensor, denominator: Tensor) -> None:
    name = "group_rational"
    if not x.is_floating_point() or x.dim() < 1:
        raise InvalidInput(f"{name}: x must be floating point of shape (..., D), not {x.dtype} of {tuple(x.shape)}")
    for what, coefficients in (("numerator", numerator), ("denominator", denominator)):
        if coefficients.dim() != 2 or 0 in coefficients.shape:
            shape = tuple(coefficients.shape)
            raise InvalidInput(f"{name}: {what} must have a row per group and a column per power, not shape {shape}")
        if coefficients.dtype not in (x.dtype, torch.promote_types(x.dtype, torch.float32)):
            raise InvalidInput(f"{name}: {what} is {coefficients.dtype} but x is {x.dtype}; cast one")
        if coefficients.device != x.device:
            raise InvalidInput(f"{name}: {what} is on {coefficients.device} but x is on {x.device}")
    groups = {numerator.shape[0], denominator.shape[0]} - {1} or {1}
    if len(groups) > 1 or x.shape[-1] % max(groups):
        raise InvalidInput(
            f"{name}: numerator has {numerator.shape[0]} groups, denominator {denominator.shape[0]}, x {x.shape[-1]} "
            "channels; the groups must agree, or be 1 to be shared, and divide the channels"
        )
