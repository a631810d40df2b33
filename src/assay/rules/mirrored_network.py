"""The mirror image of a network: layers of its own that lead from its output's shape back to its input's.

Kao and Hariharan, arXiv:2409.19841, the feedback network of counter-current learning in their code. For forward layers
F_1..F_n with outputs A_k of shape s_k, and A_0 the input, the mirror has G_n..G_1:

    F_k linear:                     G_k = phi(W S_k),  W (d_{k-1}, d_k)
    F_k convolution, pooled:        G_k = phi(conv(nearest-neighbour upsampling of S_k)),  s_k's channels to s_{k-1}'s

without biases; G_1 has no activation phi. Weights are torch's defaults, drawn apart from the forward ones.

Shapes: S_k (C, *s_k), d_k the product of s_k. Departures: upsampling is to the size of A_{k-1}, so that odd sizes and
strides fit. Cost: as many weights as the forward layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._layers import linear
from assay.models.mlp import ACTIVATIONS
from assay.rules._local_layers import leaves

__all__ = ["mirror"]


def mirror(
    layers: Sequence[nn.Module],
    input_shape: Sequence[int],
    activation: str = "elu",
    generator: torch.Generator | None = None,
) -> nn.ModuleList:
    """Build the mirror of layers.

    Args:
        layers: F_1..F_n in order, each with one `nn.Linear` or `nn.Conv2d` and whatever has no matrix of weights.
        input_shape: Shape of one input.
        activation: phi: "relu", "tanh", "elu" or "gelu".
        generator: Draws the weights; None is torch's global generator.

    Returns:
        G_n..G_1, in the order of their application.

    Raises:
        InvalidInput: If a layer has no mirror, the layers do not take such inputs, or there is no such activation.

    Example:
        >>> layers = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.ELU(), nn.MaxPool2d(2), nn.Flatten()), nn.Linear(36, 10)]
        >>> s = torch.eye(10)
        >>> for g in mirror(layers, (1, 8, 8)):
        ...     s = g(s)
        ...     print(tuple(s.shape))
        (10, 36)
        (10, 1, 8, 8)
    """
    if activation not in ACTIVATIONS:
        raise InvalidInput(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    like = next(layers[0].parameters())
    x = torch.zeros(2, *input_shape, dtype=like.dtype, device=like.device)
    mirrored: list[nn.Module] = []
    for layer in layers:
        before = tuple(x.shape[1:])
        x, map_shape = _run(layer, x)
        ending = [ACTIVATIONS[activation]()] if mirrored else []
        mirrored.insert(0, nn.Sequential(*_reversed(layer, before, map_shape, generator), *ending))
    return nn.ModuleList(mirrored).to(like.device, like.dtype)


@torch.no_grad()
def _run(layer: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return a layer's output in evaluation mode, and its shape before it was flattened."""
    shape = tuple(x.shape[1:])
    try:
        for leaf in leaves(copy.deepcopy(layer).eval()):
            x = leaf(x)
            shape = shape if isinstance(leaf, nn.Flatten) and len(shape) == 3 else tuple(x.shape[1:])
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"the layers do not take inputs of that shape: {reason}") from error
    return x, shape


def _reversed(
    layer: nn.Module, before: tuple[int, ...], after: tuple[int, ...], generator: torch.Generator | None
) -> list[nn.Module]:
    weighted = [leaf for leaf in leaves(layer) if any(p.ndim > 1 for p in leaf.parameters())]
    match weighted:
        case [nn.Linear()]:
            steps: list[nn.Module] = [nn.Flatten()]
            steps.append(linear(math.prod(after), math.prod(before), bias=False, generator=generator))
            return [*steps, nn.Unflatten(1, before)] if len(before) > 1 else steps
        case [nn.Conv2d() as forward] if len(before) == len(after) == 3:
            steps = [nn.Flatten(), nn.Unflatten(1, after)]
            if after[1:] != before[1:]:
                steps.append(nn.Upsample(size=before[1:], mode="nearest"))
            return [*steps, _convolution(after[0], before[0], forward.kernel_size, generator)]
    kinds = " - ".join(type(leaf).__name__ for leaf in leaves(layer))
    raise InvalidInput(
        f"only layers with one nn.Linear or nn.Conv2d have a mirror, not {kinds}; give a feedback network of your own"
    )


def _convolution(
    channels: int, outputs: int, kernel_size: tuple[int, ...], generator: torch.Generator | None
) -> nn.Conv2d:
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, channels, outputs, kernel_size, padding="same", bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    return layer
