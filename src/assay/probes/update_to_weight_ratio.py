"""How large a tensor's change since the last measurement is, in units of the tensor: LAMB makes it the learning rate.

LAMB (arXiv:1904.00962) sets |x' - x| / |x| to its learning rate in every layer and step; under other optimizers layers
differ, and values far from about 1e-3 per step are a common sign of a learning rate that does not fit.

    update_to_weight                |x' - x| / |x|, all parameters as one vector
    update_to_weight/<parameter>    of one tensor

x: the weights at the last measurement, x' those of now. Measure at every step for steps; the first measurement gives 0.
A parameter that was 0 has no ratio and is left out.
Cost: a copy of the weights on their device; no forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from assay.probes.view import View

__all__ = ["UpdateToWeightRatio"]

_KEY = "update_to_weight"


class UpdateToWeightRatio:
    """Relative change of each trainable tensor since the last measurement.

    Attributes:
        skipped: Why a value is NaN.

    Example:
        >>> import torch
        >>> layer, probe = torch.nn.Linear(2, 2), UpdateToWeightRatio()
        >>> view = View(layer)
        >>> _, _ = probe.measure(view), layer.weight.data.mul_(1.5)
        >>> round(probe.measure(view)["update_to_weight/weight"], 6)
        0.5
    """

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}
        self._before: dict[str, Tensor] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]] = ()) -> dict[str, float]:
        """Return the quantities by name, 0 or larger.

        Args:
            view: The network; one that differs in names or shapes from the last one starts anew.
            batches: Not used.
        """
        self.skipped = {}
        now = {name: p.detach().clone() for name, p in view.parameters().items()}
        same = {name: w.shape for name, w in self._before.items()} == {name: w.shape for name, w in now.items()}
        before, self._before = self._before if same else now, now
        squares = {name: _squares(w, before[name].to(w.device)) for name, w in now.items()}
        total = tuple(map(math.fsum, zip(*squares.values(), strict=True))) if squares else (0.0, 0.0)
        ratios = {f"{_KEY}/{name}": pair for name, pair in squares.items() if pair[1] != 0}
        return {key: self._ratio(key, *pair) for key, pair in ({_KEY: total} | ratios).items()}

    def _ratio(self, key: str, moved: float, before: float) -> float:
        if not (math.isfinite(moved) and 0 < before < math.inf):
            self.skipped[key] = "there are no trainable parameters, or they are not finite, or were 0"
            return math.nan
        return math.sqrt(moved / before)


def _squares(now: Tensor, before: Tensor) -> tuple[float, float]:
    wide = torch.promote_types(now.dtype, torch.float64)
    now, before = now.to(wide), before.to(wide)
    return (now - before).abs().square().sum().item(), before.abs().square().sum().item()
