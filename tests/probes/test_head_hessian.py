"""Distances of two domains' head Hessians against dense matrices, and the transfer they bound."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes.curvature_matrix import CurvatureMatrix
from assay.probes.head_hessian import HeadHessian, head_hessian_distances
from assay.probes.view import View


def _domains(classes: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], nn.Linear]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    head = nn.Linear(4, classes, dtype=torch.float64)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(draw(*p.shape))
    labels = [torch.randint(classes, (n,), generator=generator) for n in (12, 9)]
    return (draw(12, 4), labels[0]), (2 * draw(9, 4) + 1, labels[1]), head


def test_distances_are_those_of_dense_matrices() -> None:
    """A distance would be another norm, or of other parameters than the head's."""
    first, second, head = _domains(3)
    P = sum(p.numel() for p in head.parameters())
    dense = [CurvatureMatrix(head, None, each) @ torch.eye(P, dtype=torch.float64) for each in (first, second)]
    gradients = []
    for z, y in (first, second):
        slopes = torch.autograd.grad(F.cross_entropy(head(z), y), list(head.parameters()))
        gradients.append(torch.cat([g.flatten() for g in slopes]))
    difference, step = dense[0] - dense[1], (gradients[0] - gradients[1]).norm().item()
    spectral = torch.linalg.matrix_norm(difference, 2).item()
    expected = [step, difference.diagonal().norm().item(), spectral, 0.2 * step + 0.02 * spectral]
    found = head_hessian_distances(first, second, head, radius=0.2)
    assert list(found.values()) == pytest.approx(expected, rel=1e-5)


def test_probe_measures_the_heads_features() -> None:
    """The probe would measure inputs and not features, or drop a batch of either domain."""
    first, second, head = _domains(3)
    body = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), nn.Tanh())
    view = View(nn.Sequential(*body, head))
    z = [body(x).detach() for x, _ in (first, second)]
    expected = head_hessian_distances((z[0], first[1]), (z[1], second[1]), head)
    batches = list(zip(first[0].split(5), first[1].split(5), strict=True))
    probe = HeadHessian(second, prefix="other", batch_size=4)
    assert probe.measure(view, batches) == pytest.approx({f"other_{k}": v for k, v in expected.items()}, rel=1e-9)


def test_bound_is_attained_at_a_common_optimum() -> None:
    """The bound on transfer would not be one, or not be tight: r^2/2 |H_S - H_T| where both gradients are 0."""
    generator = torch.Generator().manual_seed(1)
    z = [scale * torch.randn(40, 3, generator=generator, dtype=torch.float64) for scale in (1.0, 2.0)]
    # With each sample under both labels a zero head is both domains' optimum.
    domains = [(torch.cat([a, a]), torch.arange(2).repeat_interleave(40)) for a in z]
    head = nn.Linear(3, 1, dtype=torch.float64)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    radius = 1e-2
    found = head_hessian_distances(*domains, head, radius=radius)
    assert found["head_gradient_distance"] < 1e-14

    def excess(steps: Tensor) -> Tensor:
        """How much more the first domain's loss rises than the second's, for head steps (m, P)."""
        rises = []
        for a, y in domains:
            s = a @ steps[:, :3].T + steps[:, 3]
            labels = y.double()[:, None].expand_as(s)
            losses = F.binary_cross_entropy_with_logits(s, labels, reduction="none").mean(0)
            rises.append(losses - math.log(2))
        return (rises[0] - rises[1]).abs()

    steps = torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    largest = excess(radius * steps / steps.norm(dim=1, keepdim=True)).max().item()
    assert 0.95 * found["head_transfer_bound"] < largest <= 1.001 * found["head_transfer_bound"]


def test_equal_domains_are_not_apart() -> None:
    """A domain would be at a distance from itself."""
    first, _, head = _domains(3)
    assert all(v == 0 for v in head_hessian_distances(first, first, head).values())


def test_bad_input_is_one_clear_error() -> None:
    """A radius of 0 or labels of other classes would give a number that means nothing."""
    first, second, head = _domains(3)
    with pytest.raises(InvalidInput, match="radius"):
        head_hessian_distances(first, second, head, radius=0.0)
    with pytest.raises(InvalidInput, match="radius"):
        HeadHessian(second, radius=-1.0)
    with pytest.raises(InvalidInput):
        head_hessian_distances(first, (second[0], second[1] + 3), head)
