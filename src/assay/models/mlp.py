"""Fully connected network: flatten, then blocks of Linear - (BatchNorm) - activation, then a linear head.

Shapes: B samples of any shape with d_0 entries, C outputs.
The network is an `nn.Sequential` with children `flatten`, `block1` ... `block<depth>`, `head`, so that learning rules
which train block by block and probes which look at layers find their way. Initialisation is torch's default,
unless He's is asked for.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from assay.errors import InvalidInput
from assay.models._layers import BlockSequential, linear

__all__ = ["MLP"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
}


class MLP(BlockSequential):
    """Multi-layer perceptron.

    Args:
        input_shape: Shape of one sample, such as `(1, 28, 28)` or `(30,)`.
        outputs: Number of scores C.
        width: Units of each hidden block, or one number per block (then `depth` must fit or be left out).
        depth: Number of hidden blocks, 0 or more; 2 unless `width` is a sequence.
        batch_norm: Whether each block normalises its pre-activations over the mini-batch.
        bias: Whether the linear layers have biases.
        activation: "relu", "tanh", "elu", "gelu" or "sigmoid", of each block.
        he: Whether hidden weights have variance 2 / fan-in and biases start at 0 (He et al. 2015), so that signals keep
            their size in a deep ReLU network; otherwise they shrink by a factor of about 2.4 per block.
        generator: Draws the initial weights; None is torch's global generator, as in `nn.Linear`.

    Raises:
        InvalidInput: If a size is out of range, `width` and `depth` disagree, or there is no such activation.

    Example:
        >>> MLP((1, 8, 8), 10, width=32)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        width: int | Sequence[int] = 256,
        depth: int | None = None,
        *,
        batch_norm: bool = False,
        bias: bool = True,
        activation: str = "relu",
        he: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = [math.prod(input_shape), *_widths(width, depth)]
        if min(*sizes, outputs) < 1:
            raise InvalidInput(
                f"MLP needs sizes of at least 1; got input {sizes[0]}, widths {sizes[1:]}, outputs {outputs}"
            )
        if activation not in ACTIVATIONS:
            raise InvalidInput(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
        children: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
            layers: list[nn.Module] = [linear(fan_in, fan_out, bias=bias, generator=generator)]
            if he:
                _he(layers[0], generator)
            if batch_norm:
                layers.append(nn.BatchNorm1d(fan_out))
            children[f"block{i}"] = nn.Sequential(*layers, ACTIVATIONS[activation]())
        children["head"] = linear(sizes[-1], outputs, bias=bias, generator=generator)
        super().__init__(children, tuple(input_shape))


def _he(layer: nn.Module, generator: torch.Generator | None) -> None:
    for name, parameter in layer.named_parameters():
        if name == "weight":
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.zeros_(parameter)


def _widths(width: int | Sequence[int], depth: int | None) -> list[int]:
    if isinstance(width, int):
        depth = 2 if depth is None else depth
        if depth < 0:
            raise InvalidInput(f"depth must be 0 or more, not {depth}")
        return [width] * depth
    if depth not in (None, len(width)):
        raise InvalidInput(f"{len(width)} widths for depth {depth}; leave the depth out or give one width per block")
    return list(width)
