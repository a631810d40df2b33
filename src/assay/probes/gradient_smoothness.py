"""Gradient-normalised smoothness: the radius within which a quadratic model of the loss gets the gradient right.

Semenov, Jaggi, Doikov, "Gradient-Normalized Smoothness for Optimization with Approximate Hessians"
(arXiv:2506.13710), definition 1. For gradient g(x) and a symmetric matrix H near the Hessian,

    gamma(x) = max { gamma :  ||g(x + h) - g(x) - H h|| <= ||g(x)|| ||h|| / gamma   for all ||h|| <= gamma }

The step of a regularised Newton method may be about that long. Error of Taylor's formula and error of H count alike:
with H = 0 it is ||g|| / L for a gradient with Lipschitz constant L, with the exact Hessian (constant L2)
sqrt(2 ||g|| / L2).

Symbols: x, g, h (P,); H (P, P) as a linear map. Norms are Euclidean.

Departure: all directions cannot be tried. Taken are both signs of the gradient, of the regularised Newton direction
and of a few random ones, and along each a grid of radii refined by bisection. What comes out is therefore never below
gamma(x), and mostly above: an upper estimate, tight along the directions that a method takes.
Cost: one gradient over the data per direction, sign and radius (about 30), and about 20 products with H.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from assay.errors import InvalidInput
from assay.probes._curvature import why_not
from assay.probes._trace import untouched
from assay.probes.curvature_matrix import CurvatureMatrix, Matrix
from assay.probes.eigenpairs import SymmetricMap
from assay.probes.view import View

__all__ = ["GradientNormalizedSmoothness", "smoothness_radius"]

RADII = 16  # of the grid, a factor of 4 apart
HALVINGS = 12
SOLVE_STEPS = 10


def smoothness_radius(
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    H: SymmetricMap | Tensor,
    directions: Tensor,
    largest: float = 1e4,
) -> float:
    """Return the largest gamma for which the inequality holds along some directions; inf if that is above `largest`.

    Args:
        gradient: Maps a point (P,) to the gradient (P,).
        x: Point (P,).
        H: Symmetric (P, P); anything with `@`.
        directions: Rows (r, P), of any length but 0; both signs count.
        largest: Radius up to which to look; the grid ends 4^15 below it.

    Raises:
        InvalidInput: If shapes do not fit.

    Example:
        >>> import torch
        >>> x = torch.tensor([2.0], dtype=torch.float64)  # f = |x|^3 / 6, for which gamma(x) = |x|
        >>> radius = smoothness_radius(lambda z: z * z.abs() / 2, x, torch.diag(x.abs()), torch.ones(1, 1))
        >>> round(radius, 2)
        2.0
    """
    if directions.ndim != 2 or directions.shape[1] != len(x):
        raise InvalidInput(f"directions have shape {tuple(directions.shape)}; expected (r, {len(x)})")
    g = gradient(x)
    smallest = largest
    for direction in directions.to(x):
        u = direction / direction.norm()
        curved = H @ u
        for sign in (1.0, -1.0):

            def error(t: float, step: Tensor = sign * u, bent: Tensor = sign * curved) -> float:
                return float((gradient(x + t * step) - g - t * bent).norm()) / t

            smallest = min(smallest, _first_breach(error, float(g.norm()), largest))
    return smallest if smallest < largest else math.inf


def _first_breach(error: Callable[[float], float], length: float, largest: float) -> float:
    """Return the least radius r with r max_{t <= r} error(t) > length, on a grid with bisection between its points."""
    worst, low = 0.0, 0.0
    for power in range(RADII - 1, -1, -1):
        high = largest / 4**power
        found = error(high)
        if not max(worst, found) * high <= length:  # NaN is a breach
            break
        worst, low = max(worst, found), high
    else:
        return largest
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5 if low else high / 2
        found = error(middle)
        if max(worst, found) * middle <= length:
            worst, low = max(worst, found), middle
        else:
            high = middle
    return high


class GradientNormalizedSmoothness:
    """An upper estimate of gamma at a network's weights.

    Args:
        matrix: H: "hessian", "ggn", "fisher" or "empirical-fisher".
        directions: Random directions beside the gradient's and Newton's.
        largest: Radius up to which to look.
        dtype: Precision; float64 by default, as differences of gradients are taken.
        seed: Of the random directions.

    Attributes:
        skipped: Why a value is NaN, by name.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> view = View(model, loss=lambda scores, y: scores.pow(3).abs().mean() / 6)
        >>> with torch.no_grad():
        ...     _ = model.weight.fill_(3.0)
        >>> round(GradientNormalizedSmoothness().measure(view, [(torch.ones(1, 1), torch.ones(1, 1))])["smoothness"], 2)
        3.0
    """

    dear: ClassVar[bool] = True

    def __init__(
        self,
        matrix: Matrix = "ggn",
        *,
        directions: int = 4,
        largest: float = 1e4,
        dtype: torch.dtype | None = torch.float64,
        seed: int = 0,
    ) -> None:
        if directions < 0 or not 0 < largest < math.inf:
            raise InvalidInput(f"need directions >= 0 and a finite largest > 0, not {directions} and {largest}")
        self.matrix, self.directions, self.largest, self.dtype, self.seed = matrix, directions, largest, dtype, seed
        self.skipped: dict[str, str] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return the estimate.

        Args:
            view: The network; its `loss` must average over the batch.
            batches: Pairs of inputs and targets; gone through more than once.

        Returns:
            "smoothness" (in units of the weights), or "hessian_smoothness" and so on for other matrices than "ggn". NaN
            (`skipped` says why) where the network or its gradient is not finite or is 0, where the inequality holds up
            to `largest`, or where the rule does not predict by the model's own forward pass.
        """
        self.skipped = {}
        key = "smoothness" if self.matrix == "ggn" else f"{self.matrix}_smoothness"
        reason, _ = why_not(view, batches)
        value = math.nan
        if not reason:
            value, reason = self._estimate(view, batches)
        if reason:
            self.skipped[key] = reason
        return {key: value}

    def _estimate(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> tuple[float, str]:
        H = CurvatureMatrix(view, None, batches, matrix=self.matrix, dtype=self.dtype)
        if not math.isfinite(H.loss):
            return math.nan, f"the loss is {H.loss}"
        with untouched(*view.modules), torch.inference_mode(False), torch.enable_grad():
            for module in view.modules:
                module.eval()
            value, reason = self._search(H, _gradient_of(view, batches, H), H.flatten(dict(view.parameters())).detach())
        return value, reason

    def _search(self, H: CurvatureMatrix, gradient: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, str]:
        g = gradient(x)
        length = float(g.norm())
        if not 0 < length < math.inf:
            return math.nan, f"the gradient's norm is {length}"
        along = smoothness_radius(gradient, x, H, g[None], self.largest)
        newton = _regularised_newton(H, g, length / min(along, self.largest))
        generator = torch.Generator().manual_seed(self.seed)
        random = torch.randn(self.directions, len(g), generator=generator, dtype=torch.float64).to(g)
        value = min(along, smoothness_radius(gradient, x, H, torch.cat([newton[None], random]), self.largest))
        return (value, "") if value < math.inf else (math.nan, f"the model is right up to radius {self.largest}")


def _gradient_of(view: View, batches: Iterable[tuple[Any, Tensor]], H: CurvatureMatrix) -> Callable[[Tensor], Tensor]:
    """Return the gradient of the mean loss over all samples as a function of a flat point."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.detach().to(H.dtype) if tensor.is_floating_point() else tensor

    everything = dict(view.model.named_parameters()) | dict(view.model.named_buffers())
    others = {name: cast(t) for name, t in everything.items() if name not in H.slices}
    data = [tree_map_only(Tensor, cast, batch) for batch in batches]

    def gradient(x: Tensor) -> Tensor:
        aliases = {name: p.detach().requires_grad_() for name, p in H.unflatten(x).items()}
        total = torch.zeros_like(x)
        for inputs, y in data:
            loss = view.loss(view.functional(others | aliases, inputs), y) * (len(y) / H.samples)
            found = torch.autograd.grad(loss, list(aliases.values()), allow_unused=True, materialize_grads=True)
            total += torch.cat([g.reshape(-1) for g in found])
        return total

    return gradient


def _regularised_newton(H: SymmetricMap, g: Tensor, lam: float) -> Tensor:
    """Return about -(H + lam I)^-1 g, by a few steps of conjugate gradients; they stop at negative curvature."""
    d, r = torch.zeros_like(g), -g
    p, square = r, r.dot(r)
    for _ in range(SOLVE_STEPS):
        product = H @ p + lam * p
        curvature = p.dot(product)
        if not curvature > 0:
            break
        d, r = d + square / curvature * p, r - square / curvature * product
        new = r.dot(r)
        if new <= 1e-20 * g.dot(g):
            break
        p, square = r + new / square * p, new
    return d if bool(d.norm() > 0) else -g
