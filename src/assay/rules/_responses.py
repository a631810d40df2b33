"""How a fixed point answers to a nudge of its output: exactly, backwards, or by finite nudges on a circle.

Laborieux and Zenke (arXiv:2309.02214). With W the Jacobian of the drive F at the free fixed point s* = sigma(u*),
g = dL/ds placed on the output group:

    linear response        v = sigma'(u*) (W v + g)
    recurrent backprop     delta = sigma'(u*) (W^T delta + g)
    N nudges of radius r   v = (1/N) sum_k Re[ s(beta_k) / beta_k ], beta_k = r exp(2 pi i k / N);
                           N = 1: v = (s(r) - s*) / r

v is ds*/dbeta where the output's drive gets beta g. delta is the gradient by the drive; both agree iff W is symmetric.
The iterations keep no graph, so that memory does not grow with their steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from assay.models._relaxation import State, residual

if TYPE_CHECKING:
    from assay.models._relaxation import Dynamics

__all__ = ["Response", "circle", "linear_response", "linearised", "nudged_response"]

Operator = Callable[[State], State]


class Response(NamedTuple):
    """The activations' response by group, (B, ...), and the iteration's residual, both per unit of nudge."""

    activations: State
    residual: Tensor


def linearised(field: Operator, s: State) -> tuple[Operator, Operator]:
    """Return t -> J t and t -> J^T t of a field at a state; each call costs about one evaluation of the field.

    J t is the derivative by w of J^T w, which is linear in w, so that both are plain backward passes.
    """
    names = list(s)
    with torch.enable_grad():
        at = {g: v.detach().requires_grad_() for g, v in s.items()}
        out = {g: v for g, v in field(at).items() if v.requires_grad}
        w = {g: torch.zeros_like(v, requires_grad=True) for g, v in out.items()}
        options = {"allow_unused": True, "materialize_grads": True}
        back = torch.autograd.grad(
            list(out.values()), list(at.values()), list(w.values()), create_graph=True, **options
        )
    moved = {g: v for g, v in zip(names, back, strict=True) if v.requires_grad}

    def transposed(t: State) -> State:
        found = torch.autograd.grad(
            list(out.values()), list(at.values()), [t[g] for g in out], retain_graph=True, **options
        )
        return dict(zip(names, found, strict=True))

    def forward(t: State) -> State:
        found = torch.autograd.grad(
            list(moved.values()), list(w.values()), [t[g] for g in moved], retain_graph=True, **options
        )
        return {g: torch.zeros_like(s[g]) for g in names} | dict(zip(w, found, strict=True))

    return forward, transposed


def linear_response(net: Dynamics, u: State, force: Tensor, steps: int, *, transpose: bool) -> Response:
    """Return the exact response to an infinitely small force on the output group, or its transpose.

    Args:
        net: The network.
        u: Pre-activations of the free fixed point.
        force: g, (B, ...) like the output group.
        steps: Steps of the damped iteration from 0, each a term of the Neumann series where there is no damping.
        transpose: Whether to go backwards: recurrent backpropagation.
    """
    slopes = {g: _slope(net, v) for g, v in u.items()}
    operator = linearised(lambda s: net.drive(s, {}), net.activate(u))[int(transpose)]
    a = {g: torch.zeros_like(v) for g, v in u.items()}
    for _ in range(steps):
        target = operator({g: slopes[g] * a[g] for g in a})
        target["out"] = target["out"] + force
        moved = {g: target[g] - a[g] for g in a}
        a = {g: a[g] + net.damping * moved[g] for g in a}
    return Response({g: slopes[g] * a[g] for g in a}, residual(moved))


def _slope(net: Dynamics, v: Tensor) -> Tensor:
    with torch.enable_grad():
        at = v.detach().requires_grad_()
        (slope,) = torch.autograd.grad(net.activate({"": at})[""].sum(), at)
    return slope


def circle(points: int, radius: float) -> tuple[Tensor, Tensor]:
    """Return the nudges of the upper half circle and how often each counts: conjugate nudges have conjugate answers.

    Example:
        >>> [round(abs(beta), 3) for beta in circle(4, 0.5)[0].tolist()], circle(4, 0.5)[1].tolist()
        ([0.5, 0.5, 0.5], [1.0, 2.0, 1.0])
    """
    k = torch.arange(points // 2 + 1, dtype=torch.float64)
    betas = torch.polar(torch.full_like(k, radius), 2 * math.pi * k / points)
    counts = torch.where((k == 0) | (2 * k == points), 1.0, 2.0)
    return (betas.real if points <= 2 else betas), counts


def nudged_response(
    net: Dynamics, x: Tensor, u: State, force: Callable[[Tensor], Tensor], *, radius: float, points: int, steps: int
) -> Response:
    """Return the response estimated from finite nudges, which all relax as one batch.

    Args:
        net: The network.
        x: Inputs (B, ...).
        u: Pre-activations of the free fixed point, where the nudged relaxations start.
        force: dL/ds of the output group's activations, analytic; called with (nudges * B, ...).
        radius: r.
        points: N; the error is of order r^N.
        steps: Steps of the nudged relaxation.
    """
    betas, counts = circle(points, radius)
    like = u["out"]
    betas = betas.to(like.device, torch.complex(like, like).dtype if betas.is_complex() else like.dtype)
    nudge = betas.repeat_interleave(len(x)).view(-1, *[1] * (like.ndim - 1))
    start = {g: v.to(betas.dtype).repeat(len(betas), *[1] * (v.ndim - 1)) for g, v in u.items()}
    inputs = x.repeat(len(betas), *[1] * (x.ndim - 1))
    relaxed = net.relax(inputs, steps, start, lambda s: nudge * force(s))
    answers = net.activate(relaxed.state)
    if points == 1:
        free = net.activate(u)
        found = {g: (answers[g] - free[g]) / radius for g in u}
    else:
        weights = counts.to(betas) / betas / points
        found = {g: _weighted(weights, v, len(x)) for g, v in answers.items()}
    return Response(found, relaxed.residual / radius)


def _weighted(weights: Tensor, answers: Tensor, samples: int) -> Tensor:
    total = torch.einsum("k,kb...->b...", weights, answers.view(-1, samples, *answers.shape[1:]))
    return total.real if total.is_complex() else total
