"""Recurrent classifier that reads an image row by row: recurrent layers, then a linear head on the last hidden state.

Shapes: B images (c, h, w), read as h steps of c w numbers, or B sequences (T, d_in); C outputs. The network is an
`nn.Sequential` with children `rows`, `block1` ... `block<depth>`, `last`, `head`; a block gives all its hidden states.
Initialisation is torch's default.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from assay.errors import InvalidInput
from assay.models._layers import BlockSequential, linear
from assay.models._recurrence import LastStep, Recurrence, Rows

__all__ = ["RowRNN"]


class RowRNN(BlockSequential):
    """Recurrent network over the rows of an image, or over a sequence.

    Args:
        input_shape: Shape of one image (c, h, w), or of one sequence (steps, features).
        outputs: Number of scores C.
        width: Hidden units d of each layer.
        depth: Number of recurrent layers, at least 1.
        cell: "rnn" (tanh) or "gru".
        generator: Draws the initial weights; None is torch's global generator.

    Raises:
        InvalidInput: If the input is neither image nor sequence, a size is below 1 or there is no such cell.

    Example:
        >>> RowRNN((1, 8, 8), 10, width=16)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        width: int = 64,
        depth: int = 1,
        *,
        cell: str = "rnn",
        generator: torch.Generator | None = None,
    ) -> None:
        if len(input_shape) not in (2, 3):
            raise InvalidInput(
                f"RowRNN takes images (channels, height, width) or sequences (steps, features), "
                f"not {tuple(input_shape)}"
            )
        if min(*input_shape, outputs, width, depth) < 1:
            raise InvalidInput(f"RowRNN needs sizes of at least 1; got {input_shape=}, {outputs=}, {width=}, {depth=}")
        size = input_shape[-1] * (input_shape[0] if len(input_shape) == 3 else 1)
        children: OrderedDict[str, nn.Module] = OrderedDict(rows=Rows())
        for i in range(1, depth + 1):
            children[f"block{i}"] = Recurrence(size, width, cell, generator)
            size = width
        children["last"] = LastStep()
        children["head"] = linear(width, outputs, generator=generator)
        super().__init__(children, tuple(input_shape))
