"""Sharpness: the largest eigenvalues of the Hessian of the loss, or of its Gauss-Newton or Fisher matrix.

Sagun, Evci, Guney, Dauphin, Bottou (2017, arXiv:1706.04454): the few eigenvalues outside the bulk at zero, which the
data decide. Gradient descent with step eta is stable while the first is below 2 / eta.

Convention: largest by magnitude, with its sign: a negative one says that the network is at a saddle. Mean loss over the
data, eval mode, trainable parameters; see `assay.probes.CurvatureMatrix` for what is differentiated.
Cost: 10 to 30 products for the first, each about two gradients over the data; memory of one vector per product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._curvature import groups_of, why_not
from assay.probes.curvature_matrix import CurvatureMatrix, Matrix
from assay.probes.eigenpairs import Eigenpairs, top_eigenpairs
from assay.probes.view import View

__all__ = ["Sharpness"]


FEWEST_VECTORS = 10  # Lanczos rarely converges with fewer


class Sharpness:
    """The k eigenvalues of largest magnitude.

    Args:
        k: How many.
        matrix: "hessian", "ggn", "fisher" or "empirical-fisher".
        groups: Modules or parameters that get their own values, from their diagonal block; "layers" for all.
        tolerance: Largest residual, relative to the first eigenvalue.
        max_steps: Products at most.
        dtype: Precision of the products; the model's if None.
        seed: Of the start vector.
        memory: Bytes for the vectors, of which each product adds one. Where they do for fewer than ten vectors, as by
            default beyond 27 million float32 parameters, the measurement is skipped before it costs anything.

    Attributes:
        pairs: The last measurement's eigenvalues, vectors and residuals by group; "" is the whole network.
        skipped: Why a value is NaN, by name.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> view = View(model, loss=lambda scores, y: ((scores - y) ** 2).mean() / 2)
        >>> Sharpness().measure(view, [(torch.full((4, 1), 3.0), torch.zeros(4, 1))])["sharpness"]  # mean of x^2
        9.0
    """

    dear: ClassVar[bool] = True

    def __init__(
        self,
        k: int = 1,
        matrix: Matrix = "hessian",
        *,
        groups: str | Sequence[str] = (),
        tolerance: float = 1e-3,
        max_steps: int = 100,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        memory: int = 2**30,
    ) -> None:
        if k < 1 or max_steps < k:
            raise InvalidInput(f"need 1 <= k <= max_steps, not k={k} and max_steps={max_steps}")
        self.k, self.matrix, self.groups, self.dtype = k, matrix, groups, dtype
        self.tolerance, self.max_steps, self.seed, self.memory = tolerance, max_steps, seed, memory
        self.pairs: dict[str, Eigenpairs] = {}
        self.skipped: dict[str, str] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return the eigenvalues.

        Args:
            view: The network; its `loss` must average over the batch.
            batches: Pairs of inputs and targets; gone through more than once.

        Returns:
            "sharpness", "sharpness_2" to "sharpness_k", and "/<group>" after each for groups; for other matrices than
            the Hessian "ggn_sharpness" and so on. NaN (`skipped` says why) where the network is not finite, where
            the rule does not predict by the model's own forward pass, or where `max_steps` or `memory` did not do.
        """
        self.skipped, self.pairs = {}, {}
        reason, _ = why_not(view, batches)
        values: dict[str, float] = {}
        for suffix, names in groups_of(view, self.groups).items():
            prefix = "sharpness" if self.matrix == "hessian" else f"{self.matrix}_sharpness"
            keys = [f"{prefix}{suffix}" if i == 0 else f"{prefix}_{i + 1}{suffix}" for i in range(self.k)]
            found, why = (None, reason) if reason else self._pairs(view, batches, names)
            if found is not None:
                self.pairs[suffix.removeprefix("/")] = found
            limit = self.tolerance * (found.values[0].abs().item() if found else 0.0)
            for i, key in enumerate(keys):
                good = found is not None and i < len(found.values) and found.residuals[i].item() <= limit
                values[key] = found.values[i].item() if found and good else math.nan
                if not good:
                    self.skipped[key] = why or "not converged; raise max_steps, and memory with it"
        return values

    def _pairs(
        self, view: View, batches: Iterable[tuple[Any, Tensor]], names: list[str] | None
    ) -> tuple[Eigenpairs | None, str | None]:
        allowed = self._vectors(view, names)
        if allowed < FEWEST_VECTORS and allowed < self.max_steps:
            return None, f"memory={self.memory} allows for {allowed} vectors only; raise it, or choose groups"
        matrix = CurvatureMatrix(view, None, batches, matrix=self.matrix, parameters=names, dtype=self.dtype)
        if not math.isfinite(matrix.loss):
            return None, f"the loss is {matrix.loss}"
        k = min(self.k, matrix.shape[0])
        steps = min(self.max_steps, self.memory // (matrix.shape[0] * matrix.dtype.itemsize))
        try:
            found = top_eigenpairs(matrix, k, tolerance=self.tolerance, max_steps=steps, seed=self.seed)
        except InvalidInput as error:  # too large for the memory, or a product that is not finite: training goes on
            return None, f"{error}; memory={self.memory} allows for {steps} vectors"
        return found, f"there are only {k} parameters" if k < self.k else None

    def _vectors(self, view: View, names: list[str] | None) -> int:
        """Return how many vectors fit into the memory; the number of parameters, if that many do."""
        sizes = {
            name: (p.numel(), (self.dtype or p.dtype).itemsize)
            for name, p in view.parameters().items()
            if names is None or any(name == each or name.startswith(f"{each}.") for each in names)
        }
        count = sum(size for size, _ in sizes.values())
        vector = sum(size * itemsize for size, itemsize in sizes.values())
        if not vector or self.memory // vector >= count:
            return max(count, FEWEST_VECTORS)
        return self.memory // vector
