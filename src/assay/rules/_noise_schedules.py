"""How much of a label's embedding is left at time t in [0, 1]: a fixed cosine, or a schedule that is learned.

A schedule maps times (...) to retention (...), strictly increasing from noise (t = 0) to label (t = 1).
The learned one is that of arXiv:2503.24322, section 3.2 and appendix: retention = sigmoid(-gamma(t)),
gamma(t) = g0 + (g1 - g0)(1 - gbar(t)), gbar the normalised output of a two-layer network with positive weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Retention at both ends: the signal-to-noise ratio is infinite at 1, and a label's trace at t = 0 costs accuracy.
LOWEST, HIGHEST = 1e-3, 0.99
OFFSET = 0.008  # of Nichol and Dhariwal's cosine, arXiv:2102.09672, equation 17
GAMMA = (-5.0, 5.0)


class CosineSchedule(nn.Module):
    """Squared cosine, scaled into (LOWEST, HIGHEST) rather than clipped, so that it is strictly increasing."""

    def forward(self, t: Tensor) -> Tensor:
        """Return the retention at times t (...)."""
        top = math.cos(OFFSET / (1 + OFFSET) * math.pi / 2) ** 2
        cosine = ((1 - t + OFFSET) / (1 + OFFSET) * (math.pi / 2)).cos().square() / top
        return LOWEST + (HIGHEST - LOWEST) * cosine


class LearnedSchedule(nn.Module):
    """gamma falls from g1 to g0 along a learned monotone curve."""

    def __init__(self, hidden: int = 32, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.randn(hidden, generator=generator))
        self.shifts = nn.Parameter(torch.randn(hidden, generator=generator))
        self.weights = nn.Parameter(torch.randn(hidden, generator=generator))
        self.low = nn.Parameter(torch.tensor(GAMMA[0]))
        gap = GAMMA[1] - GAMMA[0]
        self.gap = nn.Parameter(torch.tensor(math.log(math.expm1(gap))))  # softplus of it is g1 - g0

    def _curve(self, t: Tensor) -> Tensor:
        hidden = torch.tanh(t[..., None] * F.softplus(self.slopes) + self.shifts)
        return hidden @ F.softplus(self.weights)

    def forward(self, t: Tensor) -> Tensor:
        """Return the retention at times t (...)."""
        values = self._curve(torch.cat([t.reshape(-1), t.new_tensor([0.0, 1.0])]))
        curve, start, end = values.split([t.numel(), 1, 1])
        share = ((curve - start) / (end - start)).view_as(t)
        return torch.sigmoid(-(self.low + F.softplus(self.gap) * (1 - share)))


def noise_schedule(name: str, generator: torch.Generator | None = None) -> nn.Module:
    """Return the schedule called "cosine" or "learned"."""
    return LearnedSchedule(generator=generator) if name == "learned" else CosineSchedule()


def snr_slope(schedule: nn.Module, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the retention and the derivative of the signal-to-noise ratio at times t (B,), differentiably."""
    # Not a leaf: torch's counter of operations cannot follow autograd.grad to the leaves of a module's inputs.
    t = t.detach().requires_grad_().clone()
    retention = schedule(t)
    (slope,) = torch.autograd.grad(retention.sum(), t, create_graph=True)
    return retention, slope / (1 - retention).square()
