"""Small convolutional network: blocks of Conv3x3 - ReLU - MaxPool2 - BatchNorm, then a linear head.

The blocks are those of Cascaded Forward (Zhao et al., arXiv:2303.09728): no bias, He-uniform weights, normalisation
after pooling. Shapes: B samples (c, h, w); block l gives (channels[l], h / 2^l, w / 2^l), rounded down; C outputs.
Children: `block1` ... `block<L>`, `flatten`, `head`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from assay.errors import InvalidInput
from assay.models._layers import BlockSequential, convolution, linear

__all__ = ["CNN"]


class CNN(BlockSequential):
    """Convolutional network of pooled blocks.

    Args:
        input_shape: Shape of one image, (channels, height, width); each block halves height and width.
        outputs: Number of scores C.
        channels: Output channels of each block, at least one.
        generator: Draws the initial weights; None is torch's global generator, as in `nn.Conv2d`.

    Raises:
        InvalidInput: If the input is no image or too small for that many blocks.

    Example:
        >>> CNN((1, 8, 8), 10, channels=(4, 8))(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        channels: Sequence[int] = (16, 32, 64),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if len(input_shape) != 3:
            raise InvalidInput(f"CNN takes images of shape (channels, height, width), not {tuple(input_shape)}")
        if not channels or min(*input_shape, *channels, outputs) < 1:
            raise InvalidInput(f"CNN needs sizes of at least 1; got {input_shape=}, {channels=}, {outputs=}")
        height, width = (size >> len(channels) for size in input_shape[1:])
        if not height or not width:
            raise InvalidInput(
                f"{len(channels)} blocks halve an image {len(channels)} times, but it is {input_shape[1]} x "
                f"{input_shape[2]}; use fewer blocks"
            )
        children: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (fan_in, fan_out) in enumerate(pairwise([input_shape[0], *channels]), start=1):
            convolve = convolution(fan_in, fan_out, generator=generator)
            children[f"block{i}"] = nn.Sequential(convolve, nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(fan_out))
        children["flatten"] = nn.Flatten()
        children["head"] = linear(channels[-1] * height * width, outputs, generator=generator)
        super().__init__(children, tuple(input_shape))
