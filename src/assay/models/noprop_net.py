"""A stack of denoisers of label embeddings: what the learning rule NoProp trains and chains.

Li, Teh and Pascanu, arXiv:2503.24322, figure 6. Every block sees the input x and a noisy embedding z of the label, and
gives class logits: T separate blocks for discrete time, or one block that is told the time.

Shapes: B samples of any shape, z (B, d), C classes.
Departures: an MLP may encode x in place of convolutions; sizes are arguments, their defaults the paper's; convolutions
have no bias; dropout is off unless asked for.
The forward pass of x alone is that of an ordinary classifier: the mean of the blocks' logits with pure noise for z in
training and its mean, zero, in evaluation. It is what the control "the same blocks without denoising" trains. NoProp
does not use it.
Cost: every block has an encoder of its own, so parameters and time are T times those of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._denoising_block import DenoisingBlock, Residual, conv_encoder, dense, mlp_encoder

__all__ = ["NoPropNet"]


class NoPropNet(nn.Module):
    """Blocks `block(z, block.encode(x)[, t]) -> logits`, for `assay.rules.NoProp`.

    Args:
        input_shape: Shape of one sample.
        num_classes: Number of classes C.
        blocks: T separate blocks (NoProp's kind "dt"); None is one block conditioned on time (kinds "ct" and "fm").
        encoder: How a block encodes x: "mlp", "conv" (images of at least 4 x 4), or a function that takes a generator
            and returns a module from x to (B, width).
        width: Units of each path of a block.
        channels: Of the convolutions, if encoder is "conv"; pooled after the first and the last.
        dropout: After each convolution; drawn from torch's global generator, as `nn.Dropout` is.
        embed_dim: Size d of the label embeddings; None is C, as for one-hot ones; "image" is the size of x, and z goes
            through an encoder like that of x (the paper's prototypes).
        time_dim: Sinusoids of the time, even.
        generator: Draws the initial weights and seeds the noise of `forward`; None is torch's global generator.

    Attributes:
        embed_dim: d.
        time_conditioned: Whether blocks take a time.

    Raises:
        InvalidInput: If a size is out of range.

    Example:
        >>> net = NoPropNet((1, 8, 8), 10, blocks=3, width=16)
        >>> x, z, block = torch.zeros(5, 1, 8, 8), torch.randn(5, 10), net.blocks[0]
        >>> block(z, block.encode(x)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        blocks: int | None = 10,
        encoder: str | Callable[[torch.Generator | None], nn.Module] = "mlp",
        width: int = 256,
        channels: Sequence[int] = (32, 64, 128),
        dropout: float = 0.0,
        embed_dim: int | str | None = None,
        time_dim: int = 64,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.time_conditioned = blocks is None
        self.embed_dim = _embedding_size(embed_dim, num_classes, self.input_shape)
        depth = 1 if blocks is None else blocks
        sizes = [*self.input_shape, num_classes, depth, width, self.embed_dim, *channels]
        if min(sizes) < 1 or time_dim < 2 or time_dim % 2 or not 0 <= dropout < 1:
            raise InvalidInput(
                f"NoPropNet needs sizes of at least 1, an even time_dim and dropout in [0, 1); got input "
                f"{self.input_shape}, {num_classes=}, {blocks=}, {width=}, {channels=}, {embed_dim=}, {time_dim=}, "
                f"{dropout=}"
            )
        norm = blocks is not None

        def encode() -> nn.Module:
            if callable(encoder):
                return encoder(generator)
            if encoder == "mlp":
                return mlp_encoder(self.input_shape, width, norm=norm, generator=generator)
            _check_image(encoder, self.input_shape, channels)
            return conv_encoder(
                self.input_shape, width, channels=channels, dropout=dropout, norm=norm, generator=generator
            )

        def label() -> nn.Module:
            if embed_dim == "image":
                return nn.Sequential(nn.Unflatten(1, self.input_shape), encode())
            first = dense(self.embed_dim, width, norm=norm, generator=generator)
            if not norm:
                return nn.Sequential(*first)
            inner = dense(width, width, norm=True, generator=generator)
            inner += dense(width, width, norm=True, relu=False, generator=generator)
            return nn.Sequential(*first, Residual(nn.Sequential(*inner)))

        def block() -> DenoisingBlock:
            dim = time_dim if self.time_conditioned else None
            return DenoisingBlock(encode(), label(), num_classes, width, time_dim=dim, norm=norm, generator=generator)

        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.noise = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))

    def start(self, x: Tensor) -> Tensor:
        """Return z (B, d) for a network without a label: standard normal in training, its mean in evaluation.

        Constant z in training would leave batch normalisation nothing to normalise.
        """
        like = next(self.parameters())
        if not self.training:
            return like.new_zeros(len(x), self.embed_dim)
        return torch.randn(len(x), self.embed_dim, generator=self.noise).to(like.device, like.dtype)

    def block_scores(self, x: Tensor, index: int) -> Tensor:
        """Return logits (B, C) of one block that gets x and no label."""
        block, z = self.blocks[index], self.start(x)
        t = z.new_zeros(len(z)) if self.time_conditioned else None
        # an nn.ModuleList forgets its members' type
        scores: Tensor = block(z, block.encode(x), t)  # type: ignore[operator]
        return scores

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the blocks' logits (B, C) without a label."""
        return torch.stack([self.block_scores(x, i) for i in range(len(self.blocks))]).mean(0)

    def get_extra_state(self) -> Tensor:
        """Return the state of the noise's generator, as bytes."""
        return self.noise.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` returned."""
        self.noise.set_state(state.cpu())


def _embedding_size(embed_dim: int | str | None, num_classes: int, input_shape: tuple[int, ...]) -> int:
    if embed_dim is None:
        return num_classes
    if isinstance(embed_dim, int):
        return embed_dim
    if embed_dim != "image":
        raise InvalidInput(f"embed_dim must be a number, None or 'image', not {embed_dim!r}")
    return prod(input_shape)


def _check_image(encoder: str, input_shape: tuple[int, ...], channels: Sequence[int]) -> None:
    if encoder != "conv":
        raise InvalidInput(f"encoder must be 'mlp', 'conv' or a function, not {encoder!r}")
    if len(input_shape) != 3 or min(input_shape[1:]) < 4 or not channels:
        raise InvalidInput(
            f"encoder 'conv' takes images (channels, height, width) of at least 4 x 4 and a convolution or more; got "
            f"{input_shape} and {len(channels)}; use encoder='mlp'"
        )
