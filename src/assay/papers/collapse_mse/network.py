"""The network of the study: a perceptron with batch norm whose head is trained or a fixed simplex.

Shapes: B samples of any shape, d features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from assay.models.mlp import MLP
from assay.nn.fixed_simplex import SimplexETFLinear

__all__ = ["SimplexHeadMLP"]


class SimplexHeadMLP(MLP):
    """A multi-layer perceptron with a fixed simplex for a head.

    Args:
        input_shape: Shape of one sample.
        outputs: K.
        width: Units of each hidden block; the last is d, at least K-1.
        generator: Draws the initial weights as `MLP` does, so that the trunk starts where that with a trained head does.

    Raises:
        InvalidInput: If a size is out of range.

    Example:
        >>> sorted({name.split(".")[0] for name, _ in SimplexHeadMLP((4,), 3, width=(8, 3)).named_parameters()})
        ['block1', 'block2', 'head']
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        width: Sequence[int],
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(input_shape, outputs, width, batch_norm=True, generator=generator)
        self.head = SimplexETFLinear(width[-1], outputs)
