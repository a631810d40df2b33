"""Coordinates in which the norm of steps is the Euclidean one, so that solvers need to know no metric.

    x = D^1/2 L^-T z,    B = D^-1/2 L L^T D^-1/2,    D = diag(scale)^2,    ||x||_B = ||z||

Shapes: x, z (P,); the metric B0 = L L^T (P, P). An entry of scale that is 0 freezes a coordinate: steps are 0 there,
and so are gradients by z, whatever they are by x. Cost: two triangular solves per matrix, nothing without a metric.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["MetricSpace", "checked_matrix", "metric_root"]


class MetricSpace:
    """Coordinates z, with x = D^1/2 L^-T z and B0 = L L^T, in which the metric is the identity."""

    def __init__(self, scale: Tensor, metric: Tensor | None) -> None:
        self.scale = scale
        self.root = None if metric is None else metric_root(metric.to(scale), len(scale))

    def covector(self, g: Tensor) -> Tensor:
        """Return a gradient (P,) by z."""
        return self.rows(g[None])[0]

    def rows(self, R: Tensor) -> Tensor:
        """Return gradients as rows (r, P) by z."""
        R = torch.where(self.scale > 0, R * self.scale, 0.0)  # a frozen parameter's gradient may be anything
        return R if self.root is None else torch.linalg.solve_triangular(self.root, R.T, upper=False).T

    def vector(self, d: Tensor) -> Tensor:
        """Return a step (P,) in x."""
        if self.root is not None:
            d = torch.linalg.solve_triangular(self.root.T, d[:, None], upper=True)[:, 0]
        return self.scale * d


def metric_root(metric: Tensor, size: int) -> Tensor:
    """Return L (P, P), lower triangular, of B0 = L L^T; raise where there is none."""
    root, info = torch.linalg.cholesky_ex(checked_matrix(metric, size, size))
    if info.item() or not torch.allclose(metric, metric.T):
        raise InvalidInput(
            "the metric must be symmetric positive definite; add a small multiple of the identity to one that is "
            "nearly singular"
        )
    return root


def checked_matrix(matrix: Tensor, *shape: int) -> Tensor:
    """Return a matrix without its graph; raise unless its last dimensions are these."""
    if matrix.ndim != 2 or tuple(matrix.shape[-len(shape) :]) != shape:
        raise InvalidInput(
            f"curvature or metric has shape {tuple(matrix.shape)}, but there are {shape[-1]} parameters; rows of "
            f"LowRank are (r, {shape[-1]}), a matrix is ({shape[-1]}, {shape[-1]})"
        )
    return matrix.detach()
