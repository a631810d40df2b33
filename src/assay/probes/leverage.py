"""Leverage of a group of samples on the sharpness: how much lower is lambda_max without them?

Rosenfeld and Risteski (2024, arXiv:2311.04163) say that a few outliers with opposing signals make the loss sharp. The
measure is ours: with H_all the Hessian of the mean loss over N samples and H_S that over a group of s of them,

    leverage = lambda_max(H_rest) / lambda_max(H_all)        H_rest = (N H_all - s H_S) / (N - s)

The groups' Hessians are taken apart, so nothing has to know where in the data the group is. A ratio means little by
itself: compare with as many random samples and with those of the highest loss.

Cost: products with H_all and H_S, some 20 to 50 for each lambda_max (`assay.probes.top_eigenpairs`).
"""

from __future__ import annotations

from torch import Tensor

from assay.errors import InvalidInput
from assay.probes.curvature_matrix import CurvatureMatrix
from assay.probes.eigenpairs import top_eigenpairs

__all__ = ["sharpness_without"]


class _Rest:
    """The matrix of the mean loss over the samples that are not in the group, as a linear map."""

    def __init__(self, everything: CurvatureMatrix, group: CurvatureMatrix) -> None:
        self.everything, self.group = everything, group
        self.shape, self.dtype, self.device = everything.shape, everything.dtype, everything.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        N, s = self.everything.samples, self.group.samples
        return (N * (self.everything @ vectors) - s * (self.group @ vectors)) / (N - s)


def sharpness_without(everything: CurvatureMatrix, group: CurvatureMatrix, *, max_steps: int = 60) -> float:
    """Return lambda_max, the eigenvalue of largest magnitude, over all samples but those of a group.

    Args:
        everything: The matrix over all N samples.
        group: The same network's matrix, of the same kind, over s of these samples.
        max_steps: Of Lanczos.

    Raises:
        InvalidInput: If the matrices do not fit, nothing would be left, or a product is not finite.

    Example:
        >>> import torch
        >>> model, half_square = torch.nn.Linear(1, 1, bias=False), lambda scores, y: (scores - y).square().mean() / 2
        >>> x, y = torch.tensor([[1.0], [1.0], [4.0]]), torch.zeros(3, 1)
        >>> everything, last = (CurvatureMatrix(model, half_square, (x[i:], y[i:])) for i in (0, 2))
        >>> round(sharpness_without(everything, last), 5)
        1.0
    """
    if everything.shape != group.shape or everything.matrix != group.matrix:
        raise InvalidInput(
            f"the matrices do not fit: {everything.matrix} {everything.shape} and {group.matrix} {group.shape}"
        )
    if group.samples >= everything.samples:
        raise InvalidInput(f"the group has {group.samples} of {everything.samples} samples; nothing would be left")
    return top_eigenpairs(_Rest(everything, group), max_steps=max_steps).values[0].item()
