"""What relaxation networks are made of: activations and connections that also take complex states, and the dynamics.

Everything is analytic in the state, so that averages over nudges on a circle in the complex plane are derivatives.
Parameters stay real: a real linear map of a complex state is two real ones, half the work of a complex product.

Shapes: B samples; a group's state has any shape (B, ...); a State maps group names to tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._layers import linear

__all__ = ["ACTIVATIONS", "Dense", "Dynamics", "PooledConvolution", "Relaxed", "State", "TopDown", "linear_map"]

State = dict[str, Tensor]
_TRUNCATED = 0.87962566103423978  # deviation of a standard normal cut at -2 and 2


def shifted_sigmoid(u: Tensor) -> Tensor:
    """Return 1 / (1 + exp(2 - 4 u)): slope 1 at u = 1/2, values in (0, 1)."""
    return torch.sigmoid(4 * u - 2)


def dsilu(u: Tensor) -> Tensor:
    """Return u/2 sig(u) + (1 - u/2) sig(u - 2): a smooth hard sigmoid of values about 0 to 1."""
    half = u / 2
    return half * torch.sigmoid(u) + (1 - half) * torch.sigmoid(u - 2)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": shifted_sigmoid, "dsilu": dsilu}


def linear_map(
    apply: Callable[..., Tensor], s: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """Return `apply(s, weight, bias)`, a real affine map such as `F.linear`, of a real or complex tensor."""
    if not s.is_complex():
        return apply(s, weight, bias, **options)
    return torch.complex(apply(s.real, weight, bias, **options), apply(s.imag, weight, None, **options))


def _lecun(shape: tuple[int, ...], generator: torch.Generator | None) -> nn.Parameter:
    """Return weights (out, in, ...) from a normal distribution of variance 1 / fan_in, cut at two deviations."""
    weight = torch.empty(shape)
    deviation = 1 / math.sqrt(weight[0].numel()) / _TRUNCATED
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator)
    return nn.Parameter(weight)


class Dense(nn.Module):
    """`W s + b` from one group to another, flattened and shaped like the target."""

    def __init__(self, source: int, target: int, *, bias: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weight = _lecun((target, source), generator)
        self.bias = nn.Parameter(torch.zeros(target)) if bias else None

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the drive of the target (B, ...)."""
        return linear_map(F.linear, source.flatten(1), self.weight, self.bias).view(target.shape)


def _windows(z: Tensor) -> Tensor:
    """Return (B, c, h, w) as non-overlapping 2 x 2 windows (B, c, h/2, 2, w/2, 2); odd last rows are left out."""
    h, w = z.shape[2] // 2, z.shape[3] // 2
    return z[:, :, : 2 * h, : 2 * w].reshape(*z.shape[:2], h, 2, w, 2)


def _softmax_pool(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax-weighted mean of each window, (B, c, h/2, 1, w/2, 1), and the weights.

    What the exponent subtracts is the same for a whole window, so it cancels and the result is analytic in z.
    """
    shift = z.detach().real if z.is_complex() else z.detach()
    weight = torch.exp(z - shift.amax((3, 5), keepdim=True))
    weight = weight / weight.sum((3, 5), keepdim=True)
    return (weight * z).sum((3, 5), keepdim=True), weight


class PooledConvolution(nn.Module):
    """Convolution of 3 x 3 and softmax pooling of 2 x 2, from a map to a map of half its height and width."""

    def __init__(self, source: int, target: int, *, bias: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weight = _lecun((target, source, 3, 3), generator)
        self.bias = nn.Parameter(torch.zeros(target)) if bias else None

    def convolve(self, source: Tensor) -> Tensor:
        """Return the convolution (B, target, h, w) before pooling."""
        return linear_map(F.conv2d, source, self.weight, self.bias, padding=1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the drive of the target (B, target, h/2, w/2)."""
        return _softmax_pool(_windows(self.convolve(source)))[0].view(target.shape)


class TopDown(PooledConvolution):
    """Feedback of a pooled convolution: the gradient, by the lower map, of sum(pool(conv(lower)) * upper)."""

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the drive of the lower map; source is the upper one (B, target channels, h/2, w/2)."""
        convolved = self.convolve(target)
        z = _windows(convolved)
        pooled, weight = _softmax_pool(z)
        slope = (weight * (1 + z - pooled) * source[:, :, :, None, :, None]).flatten(4).flatten(2, 3)
        cut = [full - part for full, part in zip(convolved.shape[2:], slope.shape[2:], strict=True)]
        slope = F.pad(slope, (0, cut[1], 0, cut[0]))
        return linear_map(F.conv_transpose2d, slope, self.weight, padding=1)


class Relaxed(NamedTuple):
    """Where a relaxation ended: pre-activations by group, and the largest residual of a sample before the last step.

    A sample's residual is the root mean square over its neurons of F(s) - u, which is 0 at a fixed point.
    """

    state: State
    residual: Tensor


class Dynamics(nn.Module):
    """Groups of neurons that drive each other; a subclass lists the groups' shapes and the connections.

    Args:
        shapes: Shape of each group's state for one sample, by name; the last one is the output group "out".
        entry: Connection from the input to the first group.
        connections: By "source-target"; a forward connection stands before its feedback.
        outputs: Number of scores.
        activation: One of `ACTIVATIONS`.
        feedback_angle: Degrees between feedback weights and the forward ones' transpose.
        gain: Factor of the initial weights between groups.
        damping: Share of the way to the drive that one step goes, in (0, 1].
        steps: Steps of a free relaxation.
        readout: Whether scores are a linear map of the output group's activations.
        input_shape: Shape of one input.
        generator: Draws the readout's weights.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        entry: nn.Module,
        connections: Mapping[str, nn.Module],
        *,
        outputs: int,
        activation: str,
        feedback_angle: float,
        gain: float,
        damping: float,
        steps: int,
        readout: bool,
        input_shape: tuple[int, ...],
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        _check_dynamics(activation, damping, steps, gain)
        self.shapes, self.input_shape = dict(shapes), input_shape
        self.activation, self.damping, self.steps = activation, damping, steps
        self.entry = entry
        self.connections = nn.ModuleDict(connections)
        self.readout = linear(math.prod(shapes["out"]), outputs, generator=generator) if readout else None
        self._initialise(math.radians(feedback_angle), gain)

    @torch.no_grad()
    def _initialise(self, angle: float, gain: float) -> None:
        """Scale the weights between groups and turn feedback towards the transpose of its forward partner."""
        for name, connection in self.connections.items():
            source, target = name.split("-")
            weight = connection.get_parameter("weight").mul_(gain)
            if f"{target}-{source}" in self.connections and connection.bias is None:
                forward = self.connections[f"{target}-{source}"].get_parameter("weight")
                forward = forward.T if forward.ndim == 2 else forward  # a convolution's feedback transposes itself
                weight.copy_(math.cos(angle) * forward + math.sin(angle) * weight)

    def start(self, x: Tensor) -> State:
        """Return zero pre-activations for a batch (B, ...)."""
        like = next(self.parameters())
        return {g: like.new_zeros(len(x), *shape) for g, shape in self.shapes.items()}

    def activate(self, u: State) -> State:
        """Return activations s = sigma(u)."""
        sigma = ACTIVATIONS[self.activation]
        return {g: sigma(v) for g, v in u.items()}

    def inject(self, x: Tensor) -> State:
        """Return the drive that comes from the input, which does not change while the network relaxes."""
        first = next(iter(self.shapes))
        if tuple(x.shape[1:]) != self.input_shape:
            raise InvalidInput(f"expected inputs (B, {', '.join(map(str, self.input_shape))}), got {tuple(x.shape)}")
        return {first: self.entry(x, x.new_empty(1).expand(len(x), *self.shapes[first]))}

    def drive(self, s: State, injected: State) -> State:
        """Return the vector field's target F(s), what the pre-activations relax to; `injected` is of `inject`."""
        total = dict(injected)
        for name, connection in self.connections.items():
            source, target = name.split("-")
            term = connection(s[source], s[target])
            total[target] = total[target] + term if target in total else term
        return {g: total[g] if g in total else torch.zeros_like(s[g]) for g in self.shapes}

    def relax(
        self, x: Tensor, steps: int, state: State | None = None, force: Callable[[Tensor], Tensor] | None = None
    ) -> Relaxed:
        """Relax: u <- (1 - damping) u + damping (F(s) + force on the output group).

        Args:
            x: Inputs (B, ...).
            steps: Steps, at least 1.
            state: Pre-activations to start from, real or complex; None is zero.
            force: From the output group's activations (B, ...) to what is added to its drive.

        Returns:
            The last pre-activations, and the residual.

        Raises:
            InvalidInput: If there are no steps, or the inputs have another shape.
        """
        if steps < 1:
            raise InvalidInput(f"a relaxation needs at least 1 step, not {steps}")
        injected = self.inject(x)
        u = self.start(x) if state is None else state
        for _ in range(steps):
            s = self.activate(u)
            target = self.drive(s, injected)
            if force is not None:
                target["out"] = target["out"] + force(s["out"])
            moved = {g: target[g] - u[g] for g in u}
            u = {g: torch.add(u[g], moved[g], alpha=self.damping) for g in u}
        return Relaxed(u, residual(moved))

    def scores(self, out: Tensor) -> Tensor:
        """Return scores (B, C) of the output group's activations."""
        out = out.flatten(1)
        if self.readout is None:
            return out
        if out.is_complex():
            return linear_map(F.linear, out, self.readout.weight, self.readout.bias)
        scores: Tensor = self.readout(out)
        return scores

    def vector_field(self, x: Tensor) -> tuple[Callable[[State], State], Relaxed]:
        """Return the map s -> F(s) at inputs x, and the activations after a free relaxation with its residual."""
        injected, relaxed = self.inject(x), self.relax(x, self.steps)
        return lambda s: self.drive(s, injected), Relaxed(self.activate(relaxed.state), relaxed.residual)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, C) after a free relaxation; differentiating them is backpropagation through time."""
        return self.scores(self.activate(self.relax(x, self.steps).state)["out"])


def residual(moved: State) -> Tensor:
    """Return the largest root mean square over neurons among samples, of a State of differences."""
    with torch.no_grad():
        squares = [v.abs().square().flatten(1) for v in moved.values()]
        return torch.cat(squares, 1).mean(1).amax().sqrt()


def _check_dynamics(activation: str, damping: float, steps: int, gain: float) -> None:
    if activation not in ACTIVATIONS:
        raise InvalidInput(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    if not 0 < damping <= 1:
        raise InvalidInput(f"damping must be above 0 and at most 1 (no damping), not {damping}")
    if steps < 1:
        raise InvalidInput(f"steps must be at least 1, not {steps}")
    if not 0 < gain < math.inf:
        raise InvalidInput(f"gain must be above 0 and finite, not {gain}")
