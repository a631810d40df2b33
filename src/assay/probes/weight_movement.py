"""How far each layer's weights are from where they were: near 0 in lazy training, where only the top layer learns.

Tian (2025, arXiv:2509.21519), stage (I): hidden weights are still those of the initialisation while the top layer fits.

    weight_movement = |W - W_0| / |W_0|          over all weights, and per layer

W_0: the weights at the probe's first measurement, or those given. Weights are parameters with two or more dimensions,
frozen ones too; biases and normalisation are left out. A tied weight comes once, under its first name.

Cost: a copy of the weights on their device, from the first measurement on; no forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from assay.errors import InvalidInput
from assay.probes.view import View

__all__ = ["WeightMovement"]

_KEY = "weight_movement"


class WeightMovement:
    """Relative distance of the weights from a reference.

    Args:
        reference: Weights W_0 by parameter name, such as a `state_dict` from before training; None takes the first
            measurement's. A run that was resumed from a checkpoint must give it.

    Attributes:
        reference: W_0 by parameter name; None before the first measurement.

    Example:
        >>> import torch
        >>> layer, probe = torch.nn.Linear(2, 2), WeightMovement()
        >>> view = View(layer)
        >>> _, _ = probe.measure(view), layer.weight.data.mul_(3)
        >>> round(probe.measure(view)["weight_movement"], 6)
        2.0
    """

    def __init__(self, reference: Mapping[str, Tensor] | None = None) -> None:
        self.reference = None if reference is None else {name: w.detach().clone() for name, w in reference.items()}
        self.skipped: dict[str, str] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]] = ()) -> dict[str, float]:
        """Return "weight_movement" and "weight_movement/<layer>", 0 or larger.

        Args:
            view: The network.
            batches: Not used.

        Returns:
            NaN, with a reason in `skipped`, where the reference is 0 or a weight is not finite.

        Raises:
            InvalidInput: If the reference lacks a weight or has it in another shape: it is of another network.
        """
        weights = {name: p.detach() for name, p in view.model.named_parameters() if p.ndim >= 2}
        if self.reference is None:
            self.reference = {name: w.clone() for name, w in weights.items()}
        self.skipped = {}
        squares = {name: _squares(w, self._reference(name, w)) for name, w in weights.items()}
        total = tuple(map(math.fsum, zip(*squares.values(), strict=True))) if squares else (math.nan, 0.0)
        found = {f"{_KEY}/{name.rpartition('.')[0] or 'model'}": [] for name in squares}  # type: ignore[var-annotated]
        for name, pair in squares.items():
            found[f"{_KEY}/{name.rpartition('.')[0] or 'model'}"].append(pair)
        layers = {key: tuple(map(math.fsum, zip(*pairs, strict=True))) for key, pairs in found.items()}
        return {key: self._ratio(key, *pair) for key, pair in {_KEY: total, **layers}.items()}

    def _reference(self, name: str, weight: Tensor) -> Tensor:
        reference = (self.reference or {}).get(name)
        if reference is None or reference.shape != weight.shape:
            found = "nothing" if reference is None else tuple(reference.shape)
            raise InvalidInput(f"the reference has {found} for {name} {tuple(weight.shape)}; use one probe per network")
        return reference.to(weight.device)

    def _ratio(self, key: str, moved: float, reference: float) -> float:
        if not (math.isfinite(moved) and 0 < reference < math.inf):
            self.skipped[key] = "there are no weights, or they are not finite, or 0 in the reference"
            return math.nan
        return math.sqrt(moved / reference)


def _squares(weight: Tensor, reference: Tensor) -> tuple[float, float]:
    return (weight.double() - reference.double()).square().sum().item(), reference.double().square().sum().item()
