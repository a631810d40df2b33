"""The block of a NoProp network: an input and a noisy label embedding in, class logits out.

arXiv:2503.24322, figure 6. The input, the embedding and (in continuous time) the time each have a path of their own to
`width` units; a small network reads the three together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from assay.models._layers import convolution, linear

# Highest angular frequency of the time's sinusoids; the lowest is 1.
FASTEST = 1000.0


class Residual(nn.Module):
    """h + f(h)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, h: Tensor) -> Tensor:
        """Return h + f(h), of the shape of h."""
        return h + self.inner(h)


def time_features(t: Tensor, size: int) -> Tensor:
    """Return sines and cosines (B, size) of times (B,) in [0, 1] at frequencies from 1 to FASTEST."""
    powers = torch.arange(size // 2, dtype=t.dtype, device=t.device) / max(size // 2 - 1, 1)
    angles = t[:, None] * FASTEST**powers
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def dense(
    fan_in: int, fan_out: int, *, norm: bool, relu: bool = True, generator: torch.Generator | None = None
) -> list[nn.Module]:
    """Return Linear - (BatchNorm) - (ReLU)."""
    layers: list[nn.Module] = [linear(fan_in, fan_out, generator=generator)]
    return layers + [nn.BatchNorm1d(fan_out)] * norm + [nn.ReLU()] * relu


def mlp_encoder(
    input_shape: Sequence[int], width: int, *, norm: bool, generator: torch.Generator | None = None
) -> nn.Module:
    """Return flatten - Linear - ReLU - Linear, which ends in BatchNorm or, without norm, in ReLU."""
    first = dense(math.prod(input_shape), width, norm=False, generator=generator)
    return nn.Sequential(nn.Flatten(), *first, *dense(width, width, norm=norm, relu=not norm, generator=generator))


def conv_encoder(
    input_shape: Sequence[int],
    width: int,
    *,
    channels: Sequence[int],
    dropout: float,
    norm: bool,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Return convolutions with ReLU, pooled by 2 after the first and the last, then a linear layer."""
    layers: list[nn.Module] = []
    planes, height, side = input_shape
    for i, out in enumerate(channels):
        layers += [convolution(planes, out, generator=generator), nn.ReLU()]
        if i in (0, len(channels) - 1):
            layers.append(nn.MaxPool2d(2))
            height, side = height // 2, side // 2
        if dropout:
            layers.append(nn.Dropout(dropout))
        planes = out
    top = dense(planes * height * side, width, norm=norm, relu=not norm, generator=generator)
    return nn.Sequential(*layers, nn.Flatten(), *top)


class DenoisingBlock(nn.Module):
    """One denoiser.

    Args:
        encoder: x -> (B, width).
        label: z (B, d) -> (B, width).
        num_classes: Number of logits C.
        width: Units of each path.
        time_dim: Sinusoids of the time, None without time.
        norm: Whether the readout normalises over the mini-batch.
        generator: Draws the initial weights.
    """

    def __init__(
        self,
        encoder: nn.Module,
        label: nn.Module,
        num_classes: int,
        width: int,
        *,
        time_dim: int | None,
        norm: bool,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encode, self.label, self.time_dim = encoder, label, time_dim
        self.time = None
        if time_dim is not None:
            self.time = nn.Sequential(*dense(time_dim, width, norm=False, generator=generator))
        paths, half = 2 + (time_dim is not None), max(width // 2, 1)
        self.readout = nn.Sequential(
            *dense(paths * width, width, norm=norm, generator=generator),
            *dense(width, half, norm=norm, generator=generator),
            linear(half, num_classes, generator=generator),
        )

    def forward(self, z: Tensor, code: Tensor, t: Tensor | None = None) -> Tensor:
        """Return logits (B, C).

        Args:
            z: Noisy embeddings (B, d).
            code: `encode(x)`, which does not depend on z or t and may be computed once for many.
            t: Times (B,) in [0, 1], if the block is conditioned on them.
        """
        paths = [code, self.label(z)]
        if self.time is not None and self.time_dim is not None:
            assert t is not None, "a block conditioned on time needs t"
            paths.append(self.time(time_features(t, self.time_dim)))
        scores: Tensor = self.readout(torch.cat(paths, dim=1))
        return scores
