"""Learned activations that are a ratio of two polynomials per group of channels, and the GR-KAN layer built on them.

Papers: "Kolmogorov-Arnold Transformer" (Yang and Wang, arXiv:2409.10594), where group-rational KANs replace a
transformer's MLPs, and "FlashKAT" (arXiv:2505.13813), which makes them fast; the function itself is
`assay.kernels.group_rational`. As in FlashKAT's training scripts, 8 groups have denominators of their own and share a
numerator.

A layer is the activation, then a linear map. It starts as a known function, by a least-squares fit on [-3, 3], and its
weights have the variance gain / fan_in with gain = Var[x] / E[F(x)^2] at x ~ N(0, 1), which keeps variances.

Departures. Coefficients are fitted here, with denominators that are sums of absolute values and so b >= 0. The official
table was fitted to 1 + |sum b_j x^j|, which its kernels do not compute: its GELU, evaluated by them, is off by up to
1.5 (its training scripts use swish, where the forms agree). The gain is integrated, not sampled.

Shapes: x (..., D). Cost: some 30 operations an element forward, 90 backward; saves x only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares, lsq_linear
from scipy.special import erf
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.kernels.rational_activation.functional import group_rational

__all__ = ["GRKANLayer", "GroupRational", "RationalFit", "fit_rational"]

Function = Callable[[np.ndarray], np.ndarray]

FUNCTIONS: dict[str, Function] = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "identity": lambda x: x,
    "swish": lambda x: x / (1 + np.exp(-x)),
}


class RationalFit(NamedTuple):
    """Coefficients of a rational function, lowest power first, and what they mean for weights behind it.

    Args:
        numerator: a_0 ... a_m.
        denominator: b_1 ... b_n, at least 0.
        gain: Var[x] / E[F(x)^2] for x ~ N(0, 1).
    """

    numerator: tuple[float, ...]
    denominator: tuple[float, ...]
    gain: float


@cache
def fit_rational(function: str | Function, degrees: tuple[int, int] = (5, 4)) -> RationalFit:
    """Fit sum a_i x^i / (1 + sum b_j |x|^j), b >= 0, to a function on [-3, 3] by least squares.

    Args:
        function: "gelu", "identity" (which is exact), "swish", or a function of an array.
        degrees: Of numerator and denominator, each at least 1.

    Raises:
        InvalidInput: If the name is unknown or a degree too small.

    Example:
        >>> fit = fit_rational("swish")
        >>> round(fit.numerator[1], 4), round(fit.gain, 3)
        (0.5, 2.811)
    """
    m, n = degrees
    if min(m, n) < 1:
        raise InvalidInput(f"expected degrees of at least 1, got {degrees}")
    if isinstance(function, str) and function not in FUNCTIONS:
        raise InvalidInput(f"no initial function {function!r}; expected one of {', '.join(FUNCTIONS)} or a callable")
    if function == "identity":
        return RationalFit((0.0, 1.0) + (0.0,) * (m - 1), (0.0,) * n, 1.0)
    found = _least_squares(FUNCTIONS[function] if isinstance(function, str) else function, m, n)
    points, weights = np.polynomial.hermite_e.hermegauss(100)
    second_moment = weights @ _rational(points, found, m) ** 2 / weights.sum()
    return RationalFit(tuple(found[: m + 1].tolist()), tuple(found[m + 1 :].tolist()), float(1 / second_moment))


def _rational(x: np.ndarray, coefficients: np.ndarray, m: int) -> np.ndarray:
    below = np.polynomial.polynomial.polyval(np.abs(x), np.r_[1.0, coefficients[m + 1 :]])
    return np.polynomial.polynomial.polyval(x, coefficients[: m + 1]) / below


def _least_squares(function: Function, m: int, n: int) -> np.ndarray:
    """Return a_0 ... a_m, b_1 ... b_n; the start solves the linear problem P = f Q."""
    x = np.linspace(-3, 3, 1000)
    y, powers, distances = function(x), x[:, None] ** np.arange(m + 1), np.abs(x)[:, None] ** np.arange(1, n + 1)
    lowest = np.r_[np.full(m + 1, -np.inf), np.zeros(n)]
    start = lsq_linear(np.hstack([powers, -y[:, None] * distances]), y, bounds=(lowest, np.inf)).x

    def slopes(coefficients: np.ndarray) -> np.ndarray:
        below = (1 + distances @ coefficients[m + 1 :])[:, None]
        return np.hstack([powers, -_rational(x, coefficients, m)[:, None] * distances]) / below

    inside = np.maximum(start, np.r_[np.full(m + 1, -np.inf), np.full(n, 1e-8)])
    tolerances = {"xtol": 1e-12, "ftol": 1e-12, "gtol": 1e-14}
    return least_squares(
        lambda c: _rational(x, c, m) - y, inside, slopes, bounds=(lowest, np.inf), x_scale="jac", **tolerances
    ).x


class GroupRational(nn.Module):
    """Activation F(x) = sum a_i x^i / (1 + sum |b_j| |x|^j) with learned a and b per group of neighbouring channels.

    Parameters are `numerator` (1 or G, m + 1) and `denominator` (G, n).

    Args:
        channels: D, the size of the last dimension.
        groups: G, a divisor of the channels.
        init: Which function it starts as: "swish", "gelu", "identity", or a function of an array to be fitted.
        degrees: m of the numerator and n of the denominator.
        share_numerator: Whether all groups have one numerator, as in FlashKAT's training scripts.
        compiled: See `assay.kernels.group_rational`.

    Raises:
        InvalidInput: If the groups don't divide the channels, or the initial function is unknown.

    Example:
        >>> activation = GroupRational(16, groups=4)
        >>> x = torch.linspace(-3, 3, 16)
        >>> bool((activation(x) - nn.functional.silu(x)).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        channels: int,
        groups: int = 8,
        init: str | Function = "swish",
        *,
        degrees: tuple[int, int] = (5, 4),
        share_numerator: bool = True,
        compiled: bool | None = None,
    ) -> None:
        super().__init__()
        if groups < 1 or channels < 1 or channels % groups:
            raise InvalidInput(f"expected groups that divide the channels, got {groups} groups of {channels} channels")
        fit = fit_rational(init, tuple(degrees))
        self.channels, self.groups, self.compiled = channels, groups, compiled
        self.numerator = nn.Parameter(torch.tensor(fit.numerator).repeat(1 if share_numerator else groups, 1))
        self.denominator = nn.Parameter(torch.tensor(fit.denominator).repeat(groups, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return F(x) (..., D) in x's dtype."""
        if x.shape[-1:] != (self.channels,):
            raise InvalidInput(f"expected {self.channels} channels in the last dimension, got shape {tuple(x.shape)}")
        return group_rational(x, self.numerator, self.denominator, compiled=self.compiled)

    def extra_repr(self) -> str:
        """Return channels, groups and degrees."""
        degrees = (self.numerator.shape[1] - 1, self.denominator.shape[1])
        return f"{self.channels}, groups={self.groups}, degrees={degrees}, share_numerator={len(self.numerator) == 1}"


class GRKANLayer(nn.Sequential):
    """A group-rational KAN layer: `GroupRational` (child `activation`), then `nn.Linear` (child `linear`).

    A transformer's MLP becomes two of them, the first with `init="identity"`, the second with "swish" or "gelu".

    Args:
        in_features: D.
        out_features: Of the linear map.
        groups: G, a divisor of `in_features`.
        init: Which function the activation starts as; the weights' variance is chosen for it.
        bias: Whether the linear map has a bias, which starts at 0.
        degrees: See `GroupRational`.
        share_numerator: See `GroupRational`.
        compiled: See `assay.kernels.group_rational`.
        generator: Draws the initial weights; None is torch's global generator, as in `nn.Linear`.

    Raises:
        InvalidInput: See `GroupRational`.

    Example:
        >>> GRKANLayer(16, 10)(torch.zeros(5, 7, 16)).shape
        torch.Size([5, 7, 10])
    """

    activation: GroupRational
    linear: nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int = 8,
        init: str | Function = "swish",
        *,
        bias: bool = True,
        degrees: tuple[int, int] = (5, 4),
        share_numerator: bool = True,
        compiled: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation = GroupRational(
            in_features, groups, init, degrees=degrees, share_numerator=share_numerator, compiled=compiled
        )
        self.linear = nn.utils.skip_init(nn.Linear, in_features, out_features, bias=bias)
        deviation = (fit_rational(init, tuple(degrees)).gain / in_features) ** 0.5
        nn.init.normal_(self.linear.weight, std=deviation, generator=generator)
        if bias:
            nn.init.zeros_(self.linear.bias)
