"""A sparse error per training sample, s = u*u - v*v, that takes up what the model cannot explain.

Paper: "Robust Training under Label Noise by Over-parameterization" (arXiv:2202.14026), the linear model of its theory.
The prediction of training sample i becomes f(x_i; theta) + s_i, with

    s_i = u_i * u_i - v_i * v_i,    u_i and v_i starting at N(0, init_std^2)

and everything is trained by plain gradient descent on a squared loss. The loss grows u and v multiplicatively, so from
a tiny start only the rows of large, lasting residuals ever grow: an implicit l1 penalty. For f = J theta from
theta = 0, loss 1/2 |J theta + s - y|^2 and rates eta for theta, alpha eta for u and v, the limit of small steps is

    min 1/2 |theta|^2 + lambda |s|_1  such that  J theta + s = y,    lambda = log(1 / init_std) / (2 alpha)

(`implicit_penalty`), which recovers sparse errors exactly where the range of J is spread over the samples.

Shapes: N training samples, B of them in a batch, C outputs; index (B,), s (B, C).

Departures: gradients are sparse by default, so that a step costs what its batch costs and not the whole table. Cost:
two (N, C) tables in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.nn._per_sample import check_index, check_sizes, rows, small_normal

__all__ = ["SparseNoise", "implicit_penalty"]


def implicit_penalty(init_std: float, ratio: float) -> float:
    """Return lambda, the weight of |s|_1 that plain gradient descent acts as if it had.

    Args:
        init_std: Size of the start of u and v, above 0 and below 1.
        ratio: alpha, the learning rate of u and v over that of the model, above 0.

    Raises:
        InvalidInput: If a number is out of its range.

    Example:
        >>> round(implicit_penalty(1e-8, 1.0), 3)
        9.21
    """
    if not 0 < init_std < 1 or not ratio > 0:
        raise InvalidInput(f"expected 0 < init_std < 1 and ratio > 0; got {init_std} and {ratio}")
    return math.log(1 / init_std) / (2 * ratio)


class SparseNoise(nn.Module):
    """Per-sample error s = u*u - v*v, to be added to predictions in training and left out afterwards.

    Args:
        num_samples: N, the size of the training set.
        outputs: C, numbers per sample.
        init_std: Deviation of the initial u and v; 0 would never move.
        sparse: Whether gradients are sparse, as `torch.optim.SGD` takes them and Adam does not.
        generator: Draws the start; None is a fixed draw.

    Raises:
        InvalidInput: On sizes below 1 or a negative `init_std`.

    Example:
        >>> noise = SparseNoise(num_samples=100)
        >>> optimizer = torch.optim.SGD(noise.param_groups(lr=1.0))
        >>> noise(torch.tensor([3, 17])).shape  # loss = mse(model(x) + noise(index), y)
        torch.Size([2, 1])
    """

    def __init__(
        self,
        num_samples: int,
        outputs: int = 1,
        init_std: float = 1e-8,
        *,
        sparse: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_samples, outputs)
        generator = generator or torch.Generator().manual_seed(0)
        self.u = small_normal(num_samples, outputs, init_std, generator)
        self.v = small_normal(num_samples, outputs, init_std, generator)
        self.sparse = sparse

    def forward(self, index: Tensor | None = None) -> Tensor:
        """Return s (B, C) of the samples with the given numbers (B,); of all, in order, without them.

        Raises:
            InvalidInput: If the index is no integer vector or, on a CPU, out of range.
        """
        if index is None:
            return self.u.square() - self.v.square()
        index = check_index(index, len(index))
        return rows(self.u, index, self.sparse).square() - rows(self.v, index, self.sparse).square()

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the group for `torch.optim.SGD`, without momentum and decay, which would spoil the sparsity."""
        return [{"params": [self.u, self.v], "lr": lr, "momentum": 0.0, "weight_decay": 0.0}]

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"num_samples={self.u.shape[0]}, outputs={self.u.shape[1]}, sparse={self.sparse}"
