"""Backpropagation and feedback alignment with clipped gradients, as the official code clips whatever it trains by.

The norm is taken over all trained parameters together, as counter-current learning takes it over its forward network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from assay.rules.backprop import Backprop
from assay.rules.direct_feedback import DirectFeedbackAlignment
from assay.rules.rule import Rule

__all__ = ["ClippedBackprop", "ClippedFeedbackAlignment"]

# The norm of the official code's configurations.
CLIP = 1.0


class _Clipped(Rule):
    def groups(self) -> list[list[nn.Parameter]]:
        """Return one group: all parameters, which are clipped together."""
        return [[parameter for group in super().groups() for parameter in group]]

    def step(
        self, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, clip: float | None = None
    ) -> dict[str, Tensor]:
        """Do one whole update, clipped at norm 1 unless `clip` is given; see `Rule.step`."""
        return super().step(x, y, optimizer, CLIP if clip is None else clip)


class ClippedBackprop(_Clipped, Backprop):
    """`Backprop`, and its arguments, whose steps follow a gradient of norm 1 at most."""


class ClippedFeedbackAlignment(_Clipped, DirectFeedbackAlignment):
    """`DirectFeedbackAlignment`, and its arguments, whose steps follow a gradient of norm 1 at most over all layers."""
