"""Trace of the Hessian, Gauss-Newton or Fisher matrix, of the whole network and by layer, with standard errors.

Hutchinson (1989): for v with independent signs, E v^T A v = tr A, and E v_l^T (A v)_l = tr A_ll for the block of a
layer l, so one product serves all layers. Hutch++ (Meyer, Musco, Musco, Woodruff 2021, arXiv:2010.09649, algorithm 1):
a third of the products finds a basis Q of what is large, a third takes its trace, and the last estimates the rest:

    tr A  ~  tr(Q^T A Q) + 3/m sum_i g_i^T (I - Q Q^T) A (I - Q Q^T) g_i         m products in all

Symbols: A (P, P), r draws, m products, Q (P, m/3).

Convention: mean loss over the data, eval mode, trainable parameters (`assay.probes.CurvatureMatrix`).
Cost: one product per draw, about two gradients over the data each; memory of 2 P numbers per draw that is taken at
once, and of m/3 P for Q.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._curvature import layers_of, why_not
from assay.probes.curvature_matrix import CurvatureMatrix, Matrix
from assay.probes.eigenpairs import SymmetricMap
from assay.probes.spectral_density import Estimate
from assay.probes.view import View

__all__ = ["HessianTrace", "hutch_plus_plus", "hutchinson"]

_Method = Literal["hutchinson", "hutch++"]
_AT_ONCE = 2**26  # numbers in the vectors of a block


def hutchinson(
    matrix: SymmetricMap, draws: int = 30, *, parts: Sequence[slice] = (slice(None),), seed: int = 0
) -> Tensor:
    """Return v^T A v for random signs v, each restricted to some coordinates: (draws, parts), float64.

    Args:
        matrix: Symmetric (P, P).
        draws: How many.
        parts: Coordinates of diagonal blocks, whose traces the columns estimate.
        seed: Of the signs.

    Example:
        >>> import torch
        >>> hutchinson(torch.diag(torch.tensor([1.0, 2.0])), 3, parts=[slice(0, 1), slice(0, 2)])
        tensor([[1., 3.],
                [1., 3.],
                [1., 3.]], dtype=torch.float64)
    """
    if draws < 1:
        raise InvalidInput(f"draws must be at least 1, not {draws}")
    generator, found = torch.Generator().manual_seed(seed), []
    at_once = max(1, _AT_ONCE // matrix.shape[0])
    for first in range(0, draws, at_once):
        v = _signs(matrix, min(at_once, draws - first), generator)
        products = v * (matrix @ v)
        found.append(torch.stack([products[part].sum(0, dtype=torch.float64) for part in parts], 1))
    return torch.cat(found)


def hutch_plus_plus(matrix: SymmetricMap, products: int = 30, *, seed: int = 0) -> Estimate:
    """Return the trace, by Hutch++, with the standard error of its random part.

    Args:
        matrix: Symmetric (P, P).
        products: m, at least 3; a third each for the basis, its trace and the rest.
        seed: Of the random signs.

    Raises:
        InvalidInput: If there are fewer than 3 products.

    Example:
        >>> import torch
        >>> u = torch.linspace(0, 1, 50)
        >>> round(hutch_plus_plus(torch.outer(u, u), 6).value, 3), round((u @ u).item(), 3)  # rank one: exact
        (16.837, 16.837)
    """
    third = products // 3
    if third < 1:
        raise InvalidInput(f"Hutch++ needs at least 3 products, not {products}")
    generator = torch.Generator().manual_seed(seed)
    sketch, g = _signs(matrix, third, generator), _signs(matrix, products - 2 * third, generator)
    Q = torch.linalg.qr(matrix @ sketch).Q
    exact = (Q * (matrix @ Q)).sum().item()
    g = g - Q @ (Q.T @ g)
    rest = (g * (matrix @ g)).double().sum(0)
    return Estimate(exact + rest.mean().item(), _error(rest))


class HessianTrace:
    """The trace, and by layer.

    Args:
        draws: Products with the matrix; the standard error falls as their square root.
        matrix: "hessian", "ggn", "fisher" or "empirical-fisher".
        method: "hutchinson" gives every layer; "hutch++" gives the whole only, with a smaller error where a few
            eigenvalues carry the trace.
        dtype: Precision of the products; the model's if None.
        seed: Of the random signs.

    Attributes:
        skipped: Why a value is NaN, by name.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> view = View(model, loss=lambda scores, y: ((scores - y) ** 2).mean() / 2)
        >>> HessianTrace(draws=4).measure(view, [(torch.eye(2), torch.zeros(2, 1))])["hessian_trace"]
        1.0
    """

    dear: ClassVar[bool] = True

    def __init__(
        self,
        draws: int = 30,
        matrix: Matrix = "hessian",
        *,
        method: _Method = "hutchinson",
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        if method not in get_args(_Method):
            raise InvalidInput(f"method must be one of {', '.join(get_args(_Method))}, not {method!r}")
        if draws < (least := 6 if method == "hutch++" else 2):
            raise InvalidInput(f"an error needs at least {least} draws by {method}, not {draws}")
        self.draws, self.matrix, self.method, self.dtype, self.seed = draws, matrix, method, dtype, seed
        self.skipped: dict[str, str] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return the trace and its standard error.

        Args:
            view: The network; its `loss` must average over the batch.
            batches: Pairs of inputs and targets; gone through more than once.

        Returns:
            "hessian_trace", "hessian_trace_error" and, by Hutchinson's method, both with "/<layer>"; another matrix's
            name takes the place of "hessian". NaN (`skipped` says why) where the network is not finite or the rule
            does not predict by the model's own forward pass.
        """
        self.skipped, key = {}, f"{self.matrix}_trace"
        reason, _ = why_not(view, batches)
        found: dict[str, Estimate] = {}
        if not reason:
            matrix = CurvatureMatrix(view, None, batches, matrix=self.matrix, dtype=self.dtype)
            reason = None if math.isfinite(matrix.loss) else f"the loss is {matrix.loss}"
            found = {} if reason else self._estimates(matrix)
        if reason:
            self.skipped = {key: reason, f"{key}_error": reason}
            return {key: math.nan, f"{key}_error": math.nan}
        values = {f"{key}{suffix}": e.value for suffix, e in found.items()}
        return values | {f"{key}_error{suffix}": e.error for suffix, e in found.items()}

    def _estimates(self, matrix: CurvatureMatrix) -> dict[str, Estimate]:
        if self.method == "hutch++":
            return {"": hutch_plus_plus(matrix, self.draws, seed=self.seed)}
        draws = hutchinson(matrix, self.draws, parts=list(matrix.slices.values()), seed=self.seed)
        groups = {f"/{layer}": names for layer, names in layers_of(matrix.names).items()} | {"": list(matrix.names)}
        column = {name: i for i, name in enumerate(matrix.names)}
        sums = {suffix: draws[:, [column[name] for name in names]].sum(1) for suffix, names in groups.items()}
        return {suffix: Estimate(t.mean().item(), _error(t)) for suffix, t in sums.items()}


def _signs(matrix: SymmetricMap, draws: int, generator: torch.Generator) -> Tensor:
    """Return random signs (P, draws)."""
    signs = torch.randint(0, 2, (draws, matrix.shape[0]), generator=generator, dtype=torch.int8) * 2 - 1
    return signs.T.to(matrix.device, matrix.dtype)


def _error(draws: Tensor) -> float:
    return draws.std().item() / math.sqrt(len(draws)) if len(draws) > 1 else math.nan
