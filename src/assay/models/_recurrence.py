"""Recurrent layers as maps from tensor to tensor, so that they can be blocks of an `nn.Sequential`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput

CELLS = {"rnn": nn.RNN, "gru": nn.GRU}


class Rows(nn.Module):
    """Images (B, c, h, w) as sequences of their rows (B, h, c w); sequences (B, T, d) stay as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, d)."""
        return x.transpose(1, 2).flatten(2) if x.ndim == 4 else x


class Recurrence(nn.Module):
    """One recurrent layer from (B, T, d_in) to all its hidden states (B, T, d), from h_0 = 0.

    Args:
        in_features: d_in.
        width: d.
        cell: "rnn" (tanh) or "gru".
        generator: Draws the initial weights, torch's default U(-1, 1) / sqrt(d); None is the global generator.

    Raises:
        InvalidInput: If there is no such cell.
    """

    def __init__(
        self, in_features: int, width: int, cell: str = "rnn", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise InvalidInput(f"cell must be one of {', '.join(CELLS)}, not {cell!r}")
        self.cell: nn.RNNBase = CELLS[cell](in_features, width, batch_first=True, device="meta").to_empty(device="cpu")
        for parameter in self.cell.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return the hidden states (B, T, d)."""
        states: Tensor = self.cell(x)[0]
        return states


class LastStep(nn.Module):
    """The last of a sequence of states, (B, T, d) to (B, d)."""

    def forward(self, states: Tensor) -> Tensor:
        """Return (B, d)."""
        return states[:, -1]
