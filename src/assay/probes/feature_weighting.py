"""How unequally do the layers weigh features: spectra of their outputs, and weights of known input directions.

Xue et al., "Investigating the Benefits of Projection Head for Representation Learning" (arXiv:2403.11391): layers
nearer to the loss weigh features more unequally. Of a layer's centred outputs h, with singular values s_i of all N:

    effective_rank    exp(-sum p_i log p_i),  p_i = s_i / sum s     (Roy and Vetterli 2007)
    condition         s_1 / s_D
    feature_weight/k  |b_k|, where h ~ sum_k b_k (v_k.x) is the least-squares fit of known directions v_k

On a linear network where the inputs' other parts are uncorrelated with the v_k.x, |b_k| is the length of the product
W_l ... W_1 v_k. Without known directions the spectrum alone is given.

Shapes: inputs (B, ...) flattened to (B, n), directions (k, n), outputs flattened to (B, D).
Cost: one forward pass, N D^2 multiply-adds in float64, D^2 + k D numbers per layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes.view import NOT_RUN, View

__all__ = ["FeatureWeighting", "effective_rank"]

RANK = 1e-9  # relative: variances below it are rounding


def effective_rank(features: Tensor) -> float:
    """Return the effective rank of centred features: their number if all directions vary alike, 1 if only one varies.

    Args:
        features: (N, D), at least two different rows.

    Raises:
        InvalidInput: On another shape, an entry that is not finite, or features that do not vary.

    Example:
        >>> round(effective_rank(torch.cat([torch.eye(3), -torch.eye(3)])), 6)
        3.0
    """
    if features.ndim != 2 or not features.is_floating_point() or not bool(features.isfinite().all()):
        raise InvalidInput(f"features must be finite floats (N, D); got {features.dtype} {tuple(features.shape)}")
    centred = features.double() - features.double().mean(dim=0)
    rank = _entropy_rank(torch.linalg.svdvals(centred))
    if math.isnan(rank):
        raise InvalidInput("the features do not vary, so they have no spectrum")
    return rank


def _entropy_rank(singular_values: Tensor) -> float:
    total = singular_values.sum()
    if not total > 0:
        return math.nan
    return torch.special.entr(singular_values / total).sum().exp().item()


class FeatureWeighting:
    """Spectrum of layers' outputs, and how strongly they weigh given input directions.

    Args:
        layers: Names as in `model.named_modules()`; all linear layers if not given. With
            `assay.nn.WithProjectionHead`: "encoder" and "head".
        directions: Known features v_k as rows (k, n) over flattened inputs.

    Raises:
        InvalidInput: If the directions are no matrix.

    Example:
        >>> view = View(nn.Linear(2, 2, bias=False))
        >>> _ = view.model.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> probe = FeatureWeighting(["0"], directions=torch.eye(2))
        >>> values = probe.measure(View(nn.Sequential(view.model)), [(x, torch.zeros(4).long())])
        >>> {name: round(value, 4) for name, value in values.items() if "feature" in name}
        {'feature_weight/0/0': 3.0, 'feature_weight/0/1': 1.0, 'feature_inequality/0': 3.0}
    """

    def __init__(self, layers: Sequence[str] | None = None, directions: Tensor | None = None) -> None:
        if directions is not None and (directions.ndim != 2 or not directions.is_floating_point()):
            raise InvalidInput(f"directions must be floats (k, n); got {directions.dtype} {tuple(directions.shape)}")
        self.layers, self.directions = layers, directions
        self.skipped: dict[str, str] = {}

    @torch.no_grad()
    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return, by layer, "effective_rank", "condition" and, for known directions, their weights and inequality.

        "feature_inequality" is the largest weight over the smallest. NaN, with the reason in `skipped`, where outputs
        do not vary, are not finite, or a ratio is infinite.

        Args:
            view: The network.
            batches: Pairs of inputs and targets; the targets are not read.

        Raises:
            InvalidInput: If the model has no such layer, or inputs do not fit the directions.
        """
        self.skipped = {}
        names = view.layers(self.layers, nn.Linear)
        sums: dict[str, _Moments] = {}
        for x, _ in batches:
            coordinates = self._coordinates(x)
            for name, output in view.activations(x, names).items():
                h = output.flatten(1).double()
                joined = h if coordinates is None else torch.cat([coordinates.to(h.device), h], dim=1)
                sums[name] = sums.get(name, _Moments()) + joined
        known = 0 if self.directions is None else len(self.directions)
        values: dict[str, float] = {}
        for name, moments in sums.items():
            values |= self._of_layer(name, moments.covariance(), known)
        for name in sorted(set(names) - sums.keys()):
            values |= self._nothing(_keys(name, known), NOT_RUN)
        return values

    def _coordinates(self, x: Any) -> Tensor | None:
        if self.directions is None:
            return None
        if not isinstance(x, Tensor) or x.flatten(1).shape[1] != self.directions.shape[1]:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InvalidInput(f"directions of {self.directions.shape[1]} entries do not fit inputs {shape}")
        return x.flatten(1).double() @ self.directions.to(x.device).double().T

    def _of_layer(self, name: str, covariance: Tensor, known: int) -> dict[str, float]:
        keys = _keys(name, known)
        outputs = covariance[known:, known:]
        if not covariance.isfinite().all() or not outputs.trace() > 0:
            reason = "the outputs do not vary" if covariance.isfinite().all() else "numbers are NaN or infinite"
            return self._nothing(keys, reason)
        variances = torch.linalg.eigvalsh(outputs).clamp(min=0)
        variances = variances.masked_fill(variances < RANK * variances[-1], 0)
        numbers = [_entropy_rank(variances.sqrt()), self._ratio(keys[1], variances.sqrt())]
        if known:
            inner, cross = covariance[:known, :known], covariance[:known, known:]
            weights = (torch.linalg.pinv(inner, hermitian=True) @ cross).norm(dim=1)
            numbers += [*weights.tolist(), self._ratio(keys[-1], weights)]
        return dict(zip(keys, numbers, strict=True))

    def _nothing(self, keys: list[str], reason: str) -> dict[str, float]:
        self.skipped |= dict.fromkeys(keys, reason)
        return dict.fromkeys(keys, math.nan)

    def _ratio(self, key: str, numbers: Tensor) -> float:
        """Return the largest over the smallest number."""
        if numbers.min() > 0:
            return (numbers.max() / numbers.min()).item()
        self.skipped[key] = "the smallest number is 0, the ratio infinite"
        return math.nan


def _keys(name: str, known: int) -> list[str]:
    keys = [f"effective_rank/{name}", f"condition/{name}", *(f"feature_weight/{name}/{k}" for k in range(known))]
    return [*keys, f"feature_inequality/{name}"] if known else keys


class _Moments:
    """First and second moments of rows, summed over batches."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def __add__(self, rows: Tensor) -> _Moments:
        new = _Moments()
        new.count = self.count + len(rows)
        new.total = self.total.to(rows) + rows.sum(dim=0)
        new.squares = self.squares.to(rows) + rows.T @ rows
        return new

    def covariance(self) -> Tensor:
        mean = self.total / self.count
        return self.squares / self.count - torch.outer(mean, mean)
