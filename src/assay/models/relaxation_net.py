"""Recurrent networks that answer with a fixed point, dense or convolutional: what equilibrium propagation trains.

Laborieux and Zenke (ICLR 2024, arXiv:2309.02214). Groups of neurons l1 ... l<depth>, out with pre-activations u and
activations s = sigma(u) relax to the drive of their neighbours:

    u <- (1 - damping) u + damping F(s, x),    F_post = sum over pre of W s_pre + b,    scores = s_out or R s_out + c.

connections: "layered" links neighbours in both directions, "loop" goes forward and back from out to l1 only,
"feedforward" has no way back, and after depth + 1 undamped steps is an ordinary network. Forward connections have a
bias, feedback ones none. At `feedback_angle` a, feedback starts at cos(a) W^T + sin(a) V with an independent V: 0 is
symmetric, 90 independent. Weights are LeCun-normal, biases 0.

Shapes: B inputs of `input_shape`, C outputs; `relax` keeps one (B, ...) tensor per group, real or complex.
Departures: steps are damped by 1/2, since the layered graph is bipartite and so its undamped map has eigenvalues in
pairs of both signs: as weights grow it comes to flip between two states. `gain` scales the weights between groups.
Cost: a relaxation is as many forward passes as it has steps; without gradients its memory does not grow with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from assay.errors import InvalidInput
from assay.models._relaxation import Dense, Dynamics, PooledConvolution, TopDown

__all__ = ["RelaxationCNN", "RelaxationNet"]

CONNECTIONS = ("layered", "loop", "feedforward")


class RelaxationNet(Dynamics):
    """Fully connected groups.

    Args:
        input_shape: Shape of one sample, which is flattened.
        outputs: Number of scores C, also the width of the output group.
        width: Neurons of each hidden group, or one number per group.
        depth: Number of hidden groups, at least 1; 2 unless `width` is a sequence.
        connections: "layered", "loop" or "feedforward".
        activation: "sigmoid", 1 / (1 + exp(2 - 4 u)), or "dsilu", smooth and nearly linear in between.
        feedback_angle: Degrees between feedback and the forward weights' transpose.
        gain: Factor of the initial weights between groups; smaller ones settle faster.
        damping: Share of the way to the drive that a step goes; 1 is the paper's.
        steps: Steps of a free relaxation; a deep net needs a few times its depth.
        readout: Whether a trained linear map turns the output group's activations into scores.
        generator: Draws the initial weights; None is torch's global generator.

    Raises:
        InvalidInput: If a size or an option is out of range.

    Example:
        >>> import torch
        >>> net = RelaxationNet((4,), 3, width=8)
        >>> net(torch.zeros(5, 4)).shape, sorted(net.connections)
        (torch.Size([5, 3]), ['l1-l2', 'l2-l1', 'l2-out', 'out-l2'])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        width: int | Sequence[int] = 256,
        depth: int | None = None,
        *,
        connections: str = "layered",
        activation: str = "sigmoid",
        feedback_angle: float = 90.0,
        gain: float = 1.0,
        damping: float = 0.5,
        steps: int = 60,
        readout: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        if connections not in CONNECTIONS:
            raise InvalidInput(f"connections must be one of {', '.join(CONNECTIONS)}, not {connections!r}")
        entries, widths = math.prod(input_shape), _widths(width, depth)
        if min(entries, outputs, *widths) < 1:
            raise InvalidInput(f"sizes must be at least 1; got input {entries}, widths {widths}, outputs {outputs}")
        sizes = _named("l", widths) | {"out": outputs}
        entry = Dense(entries, sizes["l1"], bias=True, generator=generator)
        links: dict[str, nn.Module] = {}
        for low, high in pairwise(sizes):
            links[f"{low}-{high}"] = Dense(sizes[low], sizes[high], bias=True, generator=generator)
            if connections == "layered":
                links[f"{high}-{low}"] = Dense(sizes[high], sizes[low], bias=False, generator=generator)
        if connections == "loop":
            links["out-l1"] = Dense(outputs, sizes["l1"], bias=False, generator=generator)
        super().__init__(
            {name: (size,) for name, size in sizes.items()},
            entry,
            links,
            outputs=outputs,
            activation=activation,
            feedback_angle=feedback_angle,
            gain=gain,
            damping=damping,
            steps=steps,
            readout=readout,
            input_shape=tuple(input_shape),
            generator=generator,
        )


class RelaxationCNN(Dynamics):
    """Convolutional groups, each a 3 x 3 convolution with softmax pooling of 2 x 2, then the output group.

    Feedback is the gradient, by the lower map, of the product of the upper one with its pooled convolution, with
    weights of its own. The Jacobian depends on the state, so that its symmetry is more than the weights'.

    Args:
        input_shape: Shape of one image, (channels, height, width); each group halves height and width.
        outputs: Number of scores C, also the width of the output group.
        channels: Channels of each convolutional group.
        activation: "dsilu", or "sigmoid".
        feedback_angle: Degrees between feedback and forward weights.
        gain: Factor of the initial weights between groups.
        damping: Share of the way to the drive that a step goes.
        steps: Steps of a free relaxation.
        readout: Whether a trained linear map turns the output group's activations into scores.
        generator: Draws the initial weights; None is torch's global generator.

    Raises:
        InvalidInput: If the input is no image, is too small, or an option is out of range.

    Example:
        >>> import torch
        >>> RelaxationCNN((1, 8, 8), 10, channels=(4, 8))(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        channels: Sequence[int] = (16, 32),
        *,
        activation: str = "dsilu",
        feedback_angle: float = 90.0,
        gain: float = 1.0,
        damping: float = 0.5,
        steps: int = 60,
        readout: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        if len(input_shape) != 3:
            raise InvalidInput(f"expected images of shape (channels, height, width), not {tuple(input_shape)}")
        if not channels or min(*channels, outputs, *(size >> len(channels) for size in input_shape[1:])) < 1:
            raise InvalidInput(f"an image {tuple(input_shape)} cannot be halved for channels {tuple(channels)}")
        height, width = input_shape[1:]
        maps = _named("conv", list(channels))
        shapes = {name: (c, height >> i, width >> i) for i, (name, c) in enumerate(maps.items(), start=1)}
        links: dict[str, nn.Module] = {}
        for low, high in pairwise(maps):
            links[f"{low}-{high}"] = PooledConvolution(maps[low], maps[high], bias=True, generator=generator)
            links[f"{high}-{low}"] = TopDown(maps[low], maps[high], bias=False, generator=generator)
        last = next(reversed(maps))
        entries = math.prod(shapes[last])
        links[f"{last}-out"] = Dense(entries, outputs, bias=True, generator=generator)
        links[f"out-{last}"] = Dense(outputs, entries, bias=False, generator=generator)
        super().__init__(
            {**shapes, "out": (outputs,)},
            PooledConvolution(input_shape[0], channels[0], bias=True, generator=generator),
            links,
            outputs=outputs,
            activation=activation,
            feedback_angle=feedback_angle,
            gain=gain,
            damping=damping,
            steps=steps,
            readout=readout,
            input_shape=tuple(input_shape),
            generator=generator,
        )


def _widths(width: int | Sequence[int], depth: int | None) -> list[int]:
    if isinstance(width, int):
        depth = 2 if depth is None else depth
        if depth < 1:
            raise InvalidInput(f"depth must be at least 1, not {depth}")
        return [width] * depth
    if not width or depth not in (None, len(width)):
        raise InvalidInput(f"{len(width)} widths for depth {depth}; leave the depth out or give one width per group")
    return list(width)


def _named(prefix: str, sizes: list[int]) -> dict[str, int]:
    return {f"{prefix}{i}": size for i, size in enumerate(sizes, start=1)}
