"""Tiny settings of the probes on neural collapse beside the plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from assay.probes.held_out_collapse import HeldOutCollapse
from assay.probes.layerwise_collapse import LayerwiseCollapse
from assay.probes.neural_collapse import NeuralCollapse
from assay.probes.view import View

__all__ = ["CASES"]


class _HeldOut(HeldOutCollapse):
    """With data of its own in the precision of the network that it gets."""

    def __init__(self) -> None:
        super().__init__(data=None)

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        targets, generator = torch.arange(24) % 3, torch.Generator().manual_seed(4)
        inputs = torch.randn(24, 4, generator=generator, dtype=torch.float64) + 2 * targets[:, None]
        self.data = (inputs.to(next(view.model.parameters()).dtype), targets)
        return super().measure(view, batches)


CASES: dict[str, Callable[[], Any]] = {
    "neural-collapse-sample-centred": lambda: NeuralCollapse(centre="sample"),
    "layerwise-collapse": LayerwiseCollapse,
    "held-out-collapse": _HeldOut,
    "layerwise-collapse-flat": lambda: LayerwiseCollapse(pool="flatten"),
}
