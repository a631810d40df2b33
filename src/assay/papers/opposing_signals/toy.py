"""The paper's toy model: a two-layer linear network that learns a useful part while a useless direction sharpens.

Paper: arXiv:2311.04163, section on the theory. x = (x_s, x_o) with x_s ~ N(0, I_k) and a symmetric x_o of variance v,
target beta^T x_s + |x_o|, network b^T A x, A (m, k + 1), b (m,). Since E x_o |x_o| = 0 the population loss is, with
w = A^T b and up to a constant,

    L = 1/2 |w_s - beta|^2 + v/2 w_o^2

so the best weight on x_o is zero. But the curvature of A's last column is v b b^T, and small balanced weights keep
|b|^2 = |w|: learning beta makes the useless direction v |beta| sharp. (Derivation ours.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.lab.record import Record, Series
from assay.lab.resources import check_deadline
from assay.streams import Streams

__all__ = ["gradient", "loss", "toy"]


def loss(parameters: Tensor, beta: Tensor, variance: float, width: int) -> Tensor:
    """Return the population loss, less its constant, of the network with the flat parameters (A, b)."""
    inputs = len(beta) + 1
    A, b = parameters[: width * inputs].view(width, inputs), parameters[width * inputs :]
    w = A.T @ b
    return ((w[:-1] - beta).square().sum() + variance * w[-1] ** 2) / 2


def gradient(parameters: Tensor, beta: Tensor, variance: float, width: int) -> Tensor:
    """Return the gradient of `loss`; by hand, since thousands of small steps are taken."""
    inputs = len(beta) + 1
    A, b = parameters[: width * inputs].view(width, inputs), parameters[width * inputs :]
    residual = A.T @ b
    residual[:-1] -= beta
    residual[-1] *= variance
    return torch.cat([torch.outer(b, residual).flatten(), A @ residual])


def toy(
    streams: Streams, *, beta: float, variance: float, features: int, width: int, scale: float, lr: float, time: float
) -> Record:
    """Descend the population loss in steps so small that they follow the gradient flow.

    Args:
        streams: "init" decides the weights, "data" the direction of beta.
        beta: Length of the useful coefficients.
        variance: v.
        features: k.
        width: m.
        scale: Standard deviation of the initial weights.
        lr: Step size; far below 2 / (v |beta|).
        time: Of the flow: steps times lr.

    Returns:
        `sharpness_ratio`, the end's lambda_max over v |beta|; `sharpness_rise`, it over the lowest lambda_max on
        the way; `loss`; and the curve of lambda_max, computed from the dense Hessian.
    """
    direction = torch.randn(features, generator=streams.torch("data"), dtype=torch.float64)
    target = beta * direction / direction.norm()
    size = width * (features + 1) + width
    parameters = scale * torch.randn(size, generator=streams.torch("init"), dtype=torch.float64)
    steps = math.ceil(time / lr)
    curve: dict[float, float] = {}
    for step in range(steps + 1):
        if step % max(1, steps // 20) == 0 or step == steps:
            check_deadline()
            hessian = torch.func.hessian(loss)(parameters, target, variance, width)
            curve[step * lr] = torch.linalg.eigvalsh(hessian)[-1].item()
        if step < steps:
            parameters = parameters - lr * gradient(parameters, target, variance, width)
    values = list(curve.values())
    return Record(
        metrics={
            "sharpness_ratio": values[-1] / (variance * beta),
            "sharpness_rise": values[-1] / min(values),
            "loss": loss(parameters, target, variance, width).item(),
        },
        series={"sharpness": Series(tuple(curve), tuple(values), unit="time")},
    )
