"""Small vision transformers: with GELU MLPs, and with group-rational KANs in their place.

Papers: "Kolmogorov-Arnold Transformer" (arXiv:2409.10594) and "FlashKAT" (arXiv:2505.13813): a transformer whose MLPs
are two GR-KAN layers, the first starting as the identity and the second as swish. Both networks here differ in nothing
else, and by 2 (m + 1 + G n) parameters per block, 76 with 8 groups of degrees (5, 4).

Shapes: B images (c, h, w); T = (h/p) (w/p) tokens of width d. Children: `patches`, `block1` ... `block<depth>`, `pool`,
`head`. Blocks are pre-norm: x + attention(norm(x)), then x + mlp(norm(x)).

Departures: the mean of all tokens instead of a class token; PyTorch's initialisation of all layers but GR-KAN's instead
of truncated normals of deviation 0.02, which were chosen for width 768; no dropout or drop-path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._layers import BlockSequential, linear
from assay.models._transformer import Attention, PreNormBlock
from assay.nn.group_rational import GRKANLayer

__all__ = ["KolmogorovArnoldTransformer", "VisionTransformer"]


class _Patches(nn.Module):
    """Cut images (B, c, h, w) into tokens (B, T, d): one linear map per patch, plus a learned position."""

    def __init__(self, input_shape: tuple[int, ...], patch: int, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        channels, height, size = input_shape
        self.patch = patch
        self.projection = linear(channels * patch**2, width, generator=generator)
        self.position = nn.Parameter(torch.empty(height // patch * (size // patch), width))
        nn.init.normal_(self.position, std=0.02, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        pieces = F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        return self.projection(pieces) + self.position


class _Pool(nn.Module):
    """The normalised tokens' mean (B, d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens).mean(1)


class VisionTransformer(BlockSequential):
    """Vision transformer with GELU MLPs.

    Args:
        input_shape: Shape of one image, (channels, height, width).
        outputs: Number of scores.
        width: d, a multiple of the heads.
        depth: Number of blocks.
        heads: Of attention.
        patch: Side of a patch, a divisor of height and width.
        mlp_ratio: Hidden units of the MLP per unit of width.
        generator: Draws the initial weights; None is torch's global generator.

    Raises:
        InvalidInput: If the input is no image or the sizes don't divide.

    Example:
        >>> VisionTransformer((1, 8, 8), 10, width=16, depth=2)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        patch: int = 2,
        mlp_ratio: int = 4,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        shape = tuple(input_shape)
        if len(shape) != 3 or min(*shape, outputs, width, depth, heads, patch, mlp_ratio) < 1:
            raise InvalidInput(f"expected an image (channels, height, width) and sizes of at least 1; got {shape=}")
        if shape[1] % patch or shape[2] % patch or width % heads:
            raise InvalidInput(
                f"patches of {patch} must divide the image {shape[1]} x {shape[2]}, and {heads} heads the width {width}"
            )
        children: OrderedDict[str, nn.Module] = OrderedDict(patches=_Patches(shape, patch, width, generator))
        for i in range(1, depth + 1):
            attention = Attention(width, heads, generator)
            children[f"block{i}"] = PreNormBlock(width, attention, self._mlp(width, mlp_ratio * width, generator))
        children["pool"] = _Pool(width)
        children["head"] = linear(width, outputs, generator=generator)
        super().__init__(children, shape)

    def _mlp(self, width: int, hidden: int, generator: torch.Generator | None) -> nn.Module:
        enter, leave = linear(width, hidden, generator=generator), linear(hidden, width, generator=generator)
        return nn.Sequential(enter, nn.GELU(), leave)


class KolmogorovArnoldTransformer(VisionTransformer):
    """Vision transformer whose MLPs are group-rational KANs (KAT).

    Args:
        input_shape: Shape of one image, (channels, height, width).
        outputs: Number of scores.
        width: d, a multiple of heads and groups.
        depth: Number of blocks.
        heads: Of attention.
        patch: Side of a patch, a divisor of height and width.
        mlp_ratio: Hidden units of a GR-KAN per unit of width.
        groups: Groups of channels with a denominator of their own.
        init: What the second activation of each block starts as: "swish" or "gelu".
        generator: Draws the initial weights; None is torch's global generator.

    Raises:
        InvalidInput: If the input is no image or the sizes don't divide.

    Example:
        >>> KolmogorovArnoldTransformer((1, 8, 8), 10, width=16, depth=2)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        patch: int = 2,
        mlp_ratio: int = 4,
        groups: int = 8,
        init: str = "swish",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        self._activation = (groups, init)
        super().__init__(input_shape, outputs, width, depth, heads, patch, mlp_ratio, generator=generator)

    def _mlp(self, width: int, hidden: int, generator: torch.Generator | None) -> nn.Module:
        groups, init = self._activation
        return nn.Sequential(
            GRKANLayer(width, hidden, groups, "identity", generator=generator),
            GRKANLayer(hidden, width, groups, init, generator=generator),
        )
