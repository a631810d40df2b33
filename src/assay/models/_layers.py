"""Linear and convolution layers that draw their initial weights from a given generator."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import nn


def linear(
    in_features: int, out_features: int, *, bias: bool = True, generator: torch.Generator | None = None
) -> nn.Linear:
    """Return an `nn.Linear` with torch's default initialisation, drawn from `generator` (None: the global one)."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, in_features, out_features, bias=bias)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if bias:
        bound = 1 / math.sqrt(in_features)
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


def convolution(in_channels: int, out_channels: int, *, generator: torch.Generator | None = None) -> nn.Conv2d:
    """Return a 3x3 convolution without bias that keeps height and width; He-uniform weights from `generator`."""
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
    return layer


class BlockSequential(nn.Sequential):
    """An `nn.Sequential` of named blocks that knows the shape of one input; its slices are plain `nn.Sequential`s."""

    def __init__(self, children: OrderedDict[str, nn.Module], input_shape: tuple[int, ...]) -> None:
        super().__init__(children)
        self.input_shape = tuple(input_shape)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)
