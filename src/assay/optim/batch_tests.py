"""Tests of whether a mini-batch's gradient is too noisy for its norm, and what batch size would do.

Lau, Liu and Kolar, arXiv:2402.11215; the norm test is Byrd et al.'s (2012), the inner-product tests Bollapragada et
al.'s (2018). With per-sample gradients g_i of a batch of b, their mean m and unbiased variances over i:

    norm              tr Var(g) / b <= eta^2 |m|^2                    next b = tr Var(g) / (eta^2 |m|^2)
    inner product     c_i = <g_i, m>                                  next b = Var(c) / (theta^2 |m|^4)
    orthogonality     o_i = g_i - c_i m / |m|^2                       next b = tr Var(o) / (nu^2 |m|^2)
    augmented         both of the last two: the larger size
    coordinate        for each entry j of the gradient                next b = max_j Var_j / (eta^2 m_j^2)

A test holds exactly where the next size is at most b, so a size that may only grow needs no other answer. Variances may
come from a part of the batch; m must not, since |m|^2 of a part is too large by the noise that the batch averages out.

Shapes: per-sample gradients by name, each (k, *parameter's shape), of k <= b samples, and m by name; inner products are
over all parameters together, complex ones as pairs of real numbers, in at least float32.
Departures: the official code sums the variances of inner products tensor by tensor, where the definition takes the
inner product over all parameters first. |m|^2 overestimates the squared norm of the true gradient by tr Cov / b, which
no test corrects: at eta near 1 a small batch hardly ever fails.
Cost: a few passes over the (k, parameters) table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from assay.errors import InvalidInput

__all__ = ["AugmentedInnerProductTest", "CoordinateNormTest", "InnerProductTest", "NormTest", "per_sample_gradients"]

Gradients = Mapping[str, Tensor]


def per_sample_gradients(
    model: torch.nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """Return each sample's own gradient by parameter name, (b, *shape).

    Neither the network's buffers nor the global generators change, though dropout draws from them.

    Args:
        model: A network without layers that mix samples.
        loss: `loss(scores, targets) -> scalar`, a mean over samples.
        x: Inputs (b, ...).
        y: Targets (b, ...).

    Raises:
        InvalidInput: If the network normalises over the batch: no sample has a gradient of its own then. Batch norm
            with frozen statistics (in `eval` mode) does not.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> squared = lambda scores, y: (scores - y).square().mean()
        >>> x, y = torch.eye(2), model(torch.eye(2)).detach() - 0.5
        >>> per_sample_gradients(model, squared, x, y)["weight"].squeeze(1).round(decimals=3)
        tensor([[1., 0.],
                [0., 1.]])
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise InvalidInput(
                f"{type(module).__name__} mixes the samples of a batch, so that none has a gradient of its own; use "
                "nn.GroupNorm or nn.LayerNorm"
            )
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    buffers = {name: b.clone() for name, b in model.named_buffers()}

    def of_one(parameters: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        scores = torch.func.functional_call(model, (parameters, buffers), (one.unsqueeze(0),))
        return loss(scores, target.unsqueeze(0))

    each = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0), randomness="different")
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        gradients: dict[str, Tensor] = each(trained, x, y)
    return gradients


def _moments(gradients: Gradients, mean: Gradients | None) -> tuple[Tensor, Tensor]:
    """Return all gradients as (k, parameters) and the batch's mean as (parameters,)."""
    table = torch.cat([_flat(g, 1) for g in gradients.values()], dim=1)
    if len(table) < 2:
        raise InvalidInput(f"a variance needs the gradients of at least 2 samples; got {len(table)}")
    if mean is None:
        return table, table.mean(0)
    if mean.keys() != gradients.keys():
        different = sorted(mean.keys() ^ gradients.keys())
        raise InvalidInput(f"the mean gradient must have the names of the gradients; they differ in {different}")
    return table, torch.cat([_flat(mean[name], 0) for name in gradients])


def _flat(gradient: Tensor, start: int) -> Tensor:
    real = torch.view_as_real(gradient) if gradient.is_complex() else gradient
    return real.reshape(*real.shape[:start], -1).to(torch.promote_types(real.dtype, torch.float32))


def _above_zero(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise InvalidInput(f"{name} must be finite and above 0; got {value}")


def _ratio(variance: Tensor, bound: Tensor) -> float:
    """Return the size; infinite where the mean is 0 but the variance is not, 0 without variance, NaN for NaN."""
    if float(variance) == 0:
        return 0.0
    if not math.isfinite(float(variance)):
        return math.nan
    return float(variance) / float(bound) if float(bound) > 0 else math.inf


@dataclass(frozen=True)
class NormTest:
    """The norm test: is the gradient's variance small against its squared norm?

    Args:
        eta: Tolerated relative error, above 0; 0.1 to 0.5 in the paper.

    Example:
        >>> NormTest(eta=0.5)({"w": torch.tensor([[1.0, 1.0], [1.0, -1.0]])})  # variance 2, mean (1, 0)
        8.0
    """

    eta: float = 0.5

    def __post_init__(self) -> None:
        _above_zero(eta=self.eta)

    def __call__(self, gradients: Gradients, mean: Gradients | None = None) -> float:
        """Return the next batch size: at most the present one where the test holds.

        Args:
            gradients: Of single samples, by name.
            mean: The batch's, by name; None for the mean of `gradients`.
        """
        table, m = _moments(gradients, mean)
        return _ratio(table.var(0).sum(), self.eta**2 * m.square().sum())


@dataclass(frozen=True)
class InnerProductTest:
    """The inner-product test: do the samples' gradients point along their mean by equal amounts?

    Args:
        theta: Tolerated relative error, above 0; 0.5 in the paper's code.
    """

    theta: float = 0.5

    def __post_init__(self) -> None:
        _above_zero(theta=self.theta)

    def __call__(self, gradients: Gradients, mean: Gradients | None = None) -> float:
        """Return the next batch size, as `NormTest` does."""
        table, m = _moments(gradients, mean)
        return _ratio((table @ m).var(), self.theta**2 * m.square().sum().square())


@dataclass(frozen=True)
class AugmentedInnerProductTest:
    """The inner-product test together with the orthogonality test.

    Args:
        theta: Tolerated error along the mean, above 0.
        nu: Tolerated error across it, above 0; 1 in the paper's code.
    """

    theta: float = 0.5
    nu: float = 1.0

    def __post_init__(self) -> None:
        _above_zero(theta=self.theta, nu=self.nu)

    def __call__(self, gradients: Gradients, mean: Gradients | None = None) -> float:
        """Return the next batch size, as `NormTest` does: at most the present one where both tests hold."""
        table, m = _moments(gradients, mean)
        squared = m.square().sum()
        along = table @ m
        # Var(o) + Var(c) / |m|^2 = Var(g), entry by entry in a basis that has m in it
        across = (table.var(0).sum() - along.var() / squared.clamp(min=torch.finfo(table.dtype).tiny)).clamp(min=0)
        sizes = _ratio(along.var(), self.theta**2 * squared.square()), _ratio(across, self.nu**2 * squared)
        return max(sizes)


@dataclass(frozen=True)
class CoordinateNormTest:
    """The norm test in every coordinate, which AdaGrad's theory asks for; the strictest of all.

    Args:
        eta: Tolerated relative error, above 0.
    """

    eta: float = 0.5

    def __post_init__(self) -> None:
        _above_zero(eta=self.eta)

    def __call__(self, gradients: Gradients, mean: Gradients | None = None) -> float:
        """Return the next batch size, as `NormTest` does; entries without variance pass."""
        table, m = _moments(gradients, mean)
        variance, bound = table.var(0), self.eta**2 * m.square()
        needed = torch.where(variance == 0, 0.0, variance / bound)
        return float(needed.max())
