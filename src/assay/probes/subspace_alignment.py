"""Alignment of a layer's leading singular vectors with a known direction and with the updates that training makes.

Kothapalli et al. (2025, arXiv:2406.04657): |<v_1, beta>| for the top right singular vector v_1 of W, and the overlaps
(U_W^T U_M)^2 and (V_W^T V_M)^2, elementwise, of the singular vectors of W and of the update M = W' - W.

    direction_alignment/<layer>           |<v_1, beta>| / |beta|
    update_overlap_<side>_before/<layer>  |U_W^T U_M|_F^2 / k, mean squared cosine between the spans of the k leading
                                          vectors of W and of M; <side> is left (outputs) or right (inputs)
    update_overlap_<side>_after/<layer>   the same with W' in the place of W

Overlaps lie in [0, 1]; two independent spans in n dimensions have k / n.

Departures: k leading vectors instead of all, since over all of them the squares of each vector sum to 1; `overlaps` has
the whole table. The update is what happened since the probe's last measurement, one step or many.

Cost: `assay.probes.singular_values.leading_singular_vectors` twice per layer and measurement, 0.4 s each for a 1024 x
1024 layer on one core; a copy of the measured weights between measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._weights import weight_matrices
from assay.probes.singular_values import as_matrix, leading_singular_vectors
from assay.probes.view import View

__all__ = ["SubspaceAlignment", "direction_alignment", "overlaps"]

_SIDES = ("left", "right")
_Triplets = tuple[Tensor, Tensor, Tensor]  # left (h, k), singular values (k,), right (d, k)


def overlaps(first: Tensor, second: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the squared cosines between the leading singular vectors of two matrices.

    Args:
        first: (h, d), such as the weight.
        second: (h, d), such as its update.
        rank: k, how many vectors of each; None for all.

    Returns:
        Left and right squared cosines, each (k, k) with a row per vector of the first.

    Raises:
        InvalidInput: If the shapes differ or the rank is out of range.

    Example:
        >>> import torch
        >>> left, right = overlaps(torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 2.0])))
        >>> right.tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    if first.shape != second.shape or first.ndim != 2:
        raise InvalidInput(f"expected two matrices of one shape, not {tuple(first.shape)} and {tuple(second.shape)}")
    k = min(first.shape) if rank is None else rank
    return _overlaps(leading_singular_vectors(first, k), leading_singular_vectors(second, k))


def _overlaps(first: _Triplets, second: _Triplets) -> tuple[Tensor, Tensor]:
    return (first[0].T @ second[0]).square(), (first[2].T @ second[2]).square()


def direction_alignment(right_vector: Tensor, direction: Tensor) -> float:
    """Return |cos| between a singular vector (d,) and a direction (d,) of any length above 0.

    Raises:
        InvalidInput: If the direction has another size, is 0 or not finite.
    """
    beta = direction.detach().double().flatten().to(right_vector.device)
    if beta.shape != right_vector.shape or not 0 < beta.norm() < math.inf:
        raise InvalidInput(
            f"the direction must be {len(right_vector)} finite numbers that are not all 0, as many as the layer reads; "
            f"it has shape {tuple(direction.shape)} and norm {beta.norm().item():g}"
        )
    return (right_vector @ beta / beta.norm()).abs().clamp(max=1.0).item()


class SubspaceAlignment:
    """Follows what training does to the leading singular vectors of a network's layers.

    The first measurement has no update yet: its overlaps are NaN, and `skipped` says so.

    Args:
        directions: A direction in input space (d,) by layer, such as a teacher's.
        layers: Layers to follow; None for those in `directions` or, if there are none, every weight matrix.
        rank: k, how many leading vectors span the subspaces.

    Attributes:
        overlaps: Squared cosines (left, right) of the last measurement by layer, each (k, k): weight before the update
            by update.

    Raises:
        InvalidInput: If the rank is below 1.

    Example:
        >>> import torch
        >>> from assay.probes.view import View
        >>> model = torch.nn.Linear(3, 3, bias=False)
        >>> model.weight.data = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> probe = SubspaceAlignment({"model": torch.tensor([1.0, 1.0, 0.0])})
        >>> round(probe.measure(View(model), [])["direction_alignment/model"], 6)
        0.707107
        >>> model.weight.data[0, 0] += 1  # an update along the first singular vectors
        >>> probe.measure(View(model), [])["update_overlap_right_before/model"]
        1.0
    """

    dear = True

    def __init__(
        self,
        directions: Mapping[str, Tensor] | None = None,
        *,
        layers: Sequence[str] | None = None,
        rank: int = 1,
    ) -> None:
        if rank < 1:
            raise InvalidInput(f"rank must be at least 1, not {rank}")
        self.directions = dict(directions or {})
        self.layers = list(layers) if layers is not None else list(self.directions) or None
        self.rank = rank
        self.overlaps: dict[str, tuple[Tensor, Tensor]] = {}
        self.skipped: dict[str, str] = {}
        self._before: dict[str, tuple[Tensor, _Triplets]] = {}

    def measure(self, view: View, batches: Iterable[Any] = ()) -> dict[str, float]:
        """Return alignments and overlaps by name and layer.

        Args:
            view: The network.
            batches: Not looked at.

        Raises:
            InvalidInput: If a layer is unknown, a weight is not finite, or a direction does not fit its layer.
        """
        self.overlaps, self.skipped = {}, {}
        values: dict[str, float] = {}
        for layer, weight in weight_matrices(view.model, self.layers).items():
            matrix = as_matrix(weight)
            triplets = leading_singular_vectors(matrix, min(self.rank, *matrix.shape))
            if layer in self.directions:
                values[f"direction_alignment/{layer}"] = direction_alignment(triplets[2][:, 0], self.directions[layer])
            values |= self._update(layer, matrix, triplets)
            self._before[layer] = matrix.clone(), triplets
        return values

    def _update(self, layer: str, matrix: Tensor, after: _Triplets) -> dict[str, float]:
        """Return the overlaps with the update since the last measurement."""
        names = [f"update_overlap_{side}_{when}/{layer}" for when in ("before", "after") for side in _SIDES]
        reason = "there is no earlier measurement, so no update"
        if layer in self._before:
            old, before = self._before[layer]
            if old.shape != matrix.shape:
                raise InvalidInput(f"layer {layer!r} was {tuple(old.shape)} before and is {tuple(matrix.shape)} now")
            k = len(after[1])
            update = leading_singular_vectors(matrix - old.to(matrix.device), k)
            if update[1][-1] > 3e-8 * update[1][0]:
                self.overlaps[layer] = _overlaps(before, update)
                tables = (*self.overlaps[layer], *_overlaps(after, update))
                return {name: (t.sum() / k).clamp(max=1.0).item() for name, t in zip(names, tables, strict=True)}
            reason = f"the update since the last measurement has less than {k} singular values above 0"
        self.skipped |= dict.fromkeys(names, reason)
        return dict.fromkeys(names, math.nan)
