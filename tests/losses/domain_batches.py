"""Domains and heads for the tests of penalties across domains, with the head's loss as a function of flat parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def seeded(seed: int) -> torch.Generator:
    """A generator of one test's draws."""
    return torch.Generator().manual_seed(seed)


def domains(sizes: tuple[int, ...] = (7, 5, 6), d: int = 4, classes: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    """Features and labels of several domains, in float64."""
    generator = seeded(0)
    z = [torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.3 * e for e, n in enumerate(sizes)]
    return z, [torch.randint(max(classes, 2), (n,), generator=generator) for n in sizes]


def linear(d: int = 4, classes: int = 3, *, bias: bool = True) -> nn.Linear:
    """A linear head with seeded parameters."""
    head = nn.Linear(d, classes, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(1), dtype=torch.float64))
    return head


def flat(head: nn.Module) -> Tensor:
    """The head's parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in head.parameters()])


def loss_of(head: nn.Module, z: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """The domain's mean loss as a function of the head's flat parameters, with torch's own criteria."""
    shapes = {name: p.shape for name, p in head.named_parameters()}

    def loss(theta: Tensor) -> Tensor:
        pieces = theta.split([s.numel() for s in shapes.values()])
        values = {name: v.view(s) for (name, s), v in zip(shapes.items(), pieces, strict=True)}
        scores = torch.func.functional_call(head, values, (z,))
        if scores.shape[1] == 1:
            return F.binary_cross_entropy_with_logits(scores[:, 0], y.double())
        return F.cross_entropy(scores, y)

    return loss


def derivatives(head: nn.Module, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The head's gradient (P,) and dense Hessian (P, P), by torch.func."""
    loss, theta = loss_of(head, z, y), flat(head)
    return torch.func.grad(loss)(theta), torch.func.hessian(loss)(theta)
