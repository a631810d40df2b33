"""The deep network of the study, in the paper's initialisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from assay.errors import InvalidInput
from assay.models.mlp import MLP

__all__ = ["deep_mlp"]


def deep_mlp(
    input_shape: Sequence[int], outputs: int, width: int = 50, depth: int = 20, start: str = "zero", jitter: float = 0.0
) -> MLP:
    """Return an MLP of many narrow ReLU layers.

    Args:
        input_shape: Shape of one sample.
        outputs: Number of classes.
        width: Units of each hidden layer.
        depth: Hidden layers.
        start: Of the weights: "zero", "simple" (N(0, 0.1^2)) or "good" (He's); biases are zero.
        jitter: Standard deviation of noise added to every weight and bias once, before training.

    Raises:
        InvalidInput: If there is no such start.
    """
    model = MLP(input_shape, outputs, width=width, depth=depth, he=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or start == "zero":
                nn.init.zeros_(parameter)
            elif start == "simple":
                nn.init.normal_(parameter, std=0.1)
            elif start != "good":
                raise InvalidInput(f"start must be 'zero', 'simple' or 'good', not {start!r}")
            if jitter:
                parameter.add_(torch.randn_like(parameter), alpha=jitter)
    return model
