"""Exponent of a spectrum's tail: Hill's estimate above the median, and maximum likelihood from the best start.

Clauset, Shalizi and Newman (2009, arXiv:0706.1062), eq. (3.1) and (3.9), as `powerlaw` and WeightWatcher compute them;
Kothapalli et al. (2025, arXiv:2406.04657) for the Hill estimate above the median.

For eigenvalues l_0 <= ... <= l_{m-1} and a tail that starts at l_i, with k_i = m - i members:

    alpha_i = 1 + k_i / sum_{j>=i} ln(l_j / l_i)
    D_i     = max_{j>=i} | 1 - (l_j / l_i)^(1 - alpha_i) - (j - i) / k_i |

`hill_alpha` is alpha_i at i = floor(m / 2); `mle_ks_alpha` takes the i in 0..m-2 that minimises D_i, the
Kolmogorov-Smirnov distance with the empirical distribution taken at its left limits.

Departures: WeightWatcher corrects its estimate on fewer than 20 eigenvalues, `powerlaw` leaves out the tail of two;
neither is done here. A tail of equal values has no exponent and is passed over.

Cost: all starts at once, first on 64 members of each tail, which leaves few to be compared with all of theirs: about
64 m differences, 2 ms for m = 1024 on one core; m^2 / 2 at worst.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["PowerLawTail", "hill_alpha", "mle_ks_alpha"]

_BLOCK = 2**17  # elements worked on at a time: 1 MiB in float64
_SAMPLED = 64  # members of a tail that its first bound looks at
_SPREAD = 1e-9  # least mean of ln(l_j / l_i): below it the values differ by rounding only


@dataclass(frozen=True)
class PowerLawTail:
    """A fitted tail with density proportional to x^-alpha from `xmin` on.

    Args:
        alpha: Exponent, above 1; NaN where no tail could be fitted.
        distance: Kolmogorov-Smirnov distance of the tail from the fit, in [0, 1].
        xmin: Where the tail starts.
        size: Members of the tail.
    """

    alpha: float
    distance: float
    xmin: float
    size: int

    @property
    def standard_error(self) -> float:
        """Asymptotic standard error of alpha for a given start, (alpha - 1) / sqrt(size)."""
        return (self.alpha - 1) / math.sqrt(self.size)


def hill_alpha(eigenvalues: Tensor) -> float:
    """Return Hill's estimate from the upper half of a spectrum.

    Args:
        eigenvalues: At least 2 positive numbers (m,), in any order.

    Returns:
        alpha, above 1; NaN if the upper half are all equal.

    Raises:
        InvalidInput: If there are fewer, or one is not positive and finite.

    Example:
        >>> round(hill_alpha(torch.tensor([1.0, 1.0, 1.0, math.e])), 6)  # 1 + 2 / (ln 1 + ln e)
        3.0
    """
    logs = _sorted_logs(eigenvalues)
    tail = logs[len(logs) // 2 :]
    spread = (tail.mean() - tail[0]).item()
    return 1 + 1 / spread if spread > _SPREAD else math.nan


def mle_ks_alpha(eigenvalues: Tensor) -> PowerLawTail:
    """Fit the tail that is closest to a power law, trying every eigenvalue but the largest as its start.

    Args:
        eigenvalues: At least 2 positive numbers (m,), in any order.

    Returns:
        The fit; its alpha and distance are NaN if the values are all equal.

    Raises:
        InvalidInput: If there are fewer, or one is not positive and finite.

    Example:
        >>> quantiles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        >>> fit = mle_ks_alpha((1 - quantiles) ** (-1 / 1.5))  # a Pareto law of density exponent 2.5
        >>> round(fit.alpha, 1), fit.size > 900
        (2.5, True)
    """
    logs = _sorted_logs(eigenvalues)
    m = len(logs)
    shifted = logs - logs[-1]  # small numbers, so that little is lost in the differences below
    sizes = torch.arange(m, 0, -1, dtype=torch.float64, device=logs.device)
    spread = (shifted.flip(0).cumsum(0).flip(0) / sizes - shifted)[:-1]
    slopes = torch.where(spread > _SPREAD, 1 / spread, math.nan)
    distances = _distances(shifted, slopes, sizes)
    best = int(distances.argmin())
    xmin = math.exp(logs[best].item())
    if not math.isfinite(distances[best].item()):
        return PowerLawTail(math.nan, math.nan, xmin, m - best)
    return PowerLawTail(1 + slopes[best].item(), distances[best].item(), xmin, m - best)


def _sorted_logs(eigenvalues: Tensor) -> Tensor:
    if eigenvalues.ndim != 1 or len(eigenvalues) < 2:
        raise InvalidInput(f"a tail needs a vector of at least 2 eigenvalues, not shape {tuple(eigenvalues.shape)}")
    if not ((eigenvalues > 0) & eigenvalues.isfinite()).all():
        raise InvalidInput("eigenvalues must be positive and finite; drop zeros before fitting a tail")
    return eigenvalues.detach().double().sort().values.log()


def _distances(logs: Tensor, slopes: Tensor, sizes: Tensor) -> Tensor:
    """Return D_i for every start i that could have the smallest, infinity for the others.

    A maximum over some of the tail's members is a lower bound: what it puts above a distance already found is out.
    """
    members = torch.arange(len(logs), device=logs.device)
    starts = members[:-1][slopes.isfinite()]
    found = torch.full_like(slopes, math.inf)
    if len(starts) == 0:
        return found
    spaced = torch.linspace(0, 1, _SAMPLED, dtype=torch.float64, device=logs.device).square() * (len(members) - 1)
    sampled = members[-1] - spaced.round().long().unique()  # densest among the largest, so that short tails have some
    bounds = _largest_gap(logs, slopes, sizes, starts, sampled)
    first = starts[bounds.argmin()][None]
    found[first] = _largest_gap(logs, slopes, sizes, first, members)
    possible = starts[bounds <= found[first]]
    for block in possible.split(max(1, _BLOCK // len(members))):
        found[block] = _largest_gap(logs, slopes, sizes, block, members)
    return found


def _largest_gap(logs: Tensor, slopes: Tensor, sizes: Tensor, starts: Tensor, members: Tensor) -> Tensor:
    """Return the largest gap between fit and empirical distribution over the given members of each start's tail.

    Row i, column j holds exp(-slope_i (logs_j - logs_i)) + j / k_i, whose distance from 1 + i / k_i is wanted.
    """
    slope, level = slopes[starts], 1 + starts / sizes[starts]
    values = torch.addr((slope * logs[starts])[:, None], slope, logs[members], alpha=-1)
    values.exp_().addr_(1 / sizes[starts], members.double())
    values = torch.where(members >= starts[:, None], values, level[:, None])  # the others do not belong to the tail
    return torch.maximum(level - values.amin(dim=1), values.amax(dim=1) - level)
