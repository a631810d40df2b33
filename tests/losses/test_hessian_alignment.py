"""Hessian alignment against dense Hessians of the head, and its estimator's mean and variance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._domains import head_domains
from assay.losses.hessian_alignment import HessianAlignmentPenalty, hessian_alignment_penalty, hutchinson_diagonal

from .domain_batches import derivatives, domains, linear, seeded

HEADS = [(3, True), (3, False), (2, True), (1, True), (1, False)]


def _nonlinear(classes: int = 3) -> nn.Module:
    head = nn.Sequential(nn.Linear(4, 3, dtype=torch.float64), nn.Tanh(), nn.Linear(3, classes, dtype=torch.float64))
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(2), dtype=torch.float64))
    return head


def _by_definition(kind: str, alpha: float, beta: float, z: list[Tensor], y: list[Tensor], head: nn.Module) -> Tensor:
    """The penalty of each domain from dense gradients and Hessians."""
    gradients, hessians = zip(*(derivatives(head, a, b) for a, b in zip(z, y, strict=True)), strict=True)
    g_bar, H_bar = torch.stack(gradients).mean(0), torch.stack(hessians).mean(0)
    terms = []
    for g, H in zip(gradients, hessians, strict=True):
        curvature = H @ g - H_bar @ g_bar if kind == "hgp" else (H - H_bar).diagonal()
        terms.append(alpha * curvature.square().sum() + beta * (g - g_bar).square().sum())
    return torch.stack(terms)


@pytest.mark.parametrize(("classes", "bias"), HEADS)
def test_closed_forms_are_those_of_the_dense_hessian(classes: int, bias: bool) -> None:
    """A gradient, product or diagonal of the head's loss would be another matrix's, for softmax or logistic heads."""
    (z, y), head = domains(classes=classes), linear(classes=classes, bias=bias)
    for domain, a, b in zip(head_domains(z, y, head), z, y, strict=True):
        g, H = derivatives(head, a, b)
        v = torch.randn(len(g), generator=seeded(3), dtype=torch.float64)
        assert torch.allclose(domain.gradient, g, rtol=1e-10, atol=1e-14)
        assert torch.allclose(domain.product(v), H @ v, rtol=1e-10, atol=1e-14)
        assert torch.allclose(domain.diagonal(), H.diagonal(), rtol=1e-10, atol=1e-14)  # type: ignore[attr-defined]


def test_other_heads_multiply_with_the_dense_hessian() -> None:
    """A head with a hidden layer would get the Gauss-Newton matrix, or vectors in another order of parameters."""
    (z, y), head = domains(), _nonlinear()
    for domain, a, b in zip(head_domains(z, y, head), z, y, strict=True):
        g, H = derivatives(head, a, b)
        assert torch.allclose(domain.gradient, g, rtol=1e-10, atol=1e-14)
        assert torch.allclose(domain.product(g), H @ g, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ["hgp", "diagonal"])
@pytest.mark.parametrize("classes", [3, 1])
@pytest.mark.parametrize("detach", [True, False])
def test_penalty_is_the_definition(kind: str, classes: int, detach: bool) -> None:
    """The reference would be the mean of H_e g_e and not Hbar gbar, or a weight or reduction would be another."""
    (z, y), head = domains(classes=classes), linear(classes=classes)
    expected = _by_definition(kind, 0.7, 0.2, z, y, head)
    options = {"kind": kind, "alpha": 0.7, "beta": 0.2, "detach_reference": detach}
    for reduction, value in (("none", expected), ("sum", expected.sum()), ("mean", expected.mean())):
        found = hessian_alignment_penalty(z, y, head, reduction=reduction, **options)  # type: ignore[arg-type]
        assert torch.allclose(found, value, rtol=1e-10)


def test_reference_is_the_mean_losss_own_product() -> None:
    """The reference would be the mean of H_e g_e, which is another vector than Hbar gbar."""
    (z, y), head = domains(), linear()
    products = torch.stack([H @ g for g, H in (derivatives(head, a, b) for a, b in zip(z, y, strict=True))])
    about_their_mean = (products - products.mean(0)).square().sum(1)
    found = hessian_alignment_penalty(z, y, head, beta=0.0, reduction="none")
    assert not torch.allclose(found, about_their_mean, rtol=0.05)


def test_hgp_of_a_nonlinear_head_is_the_definition() -> None:
    """A head with a hidden layer would be penalised as if it were linear."""
    (z, y), head = domains(), _nonlinear()
    expected = _by_definition("hgp", 1.0, 1.0, z, y, head).mean()
    assert torch.allclose(hessian_alignment_penalty(z, y, head), expected, rtol=1e-10)


def _double_backward_hgp(z: list[Tensor], y: list[Tensor], head: nn.Module, alpha: float, beta: float) -> Tensor:
    """HGP as |g| grad |g| with graphs kept, and the reference detached: the way of DomainBed."""
    parameters = list(head.parameters())

    def gradient_and_product(loss: Tensor) -> tuple[Tensor, Tensor]:
        g = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
        slope = torch.autograd.grad(g.norm(), parameters, create_graph=True)
        return g, g.norm() * torch.cat([s.flatten() for s in slope])

    losses = torch.stack([F.cross_entropy(head(a), b) for a, b in zip(z, y, strict=True)])
    g_bar, Hg_bar = (t.detach() for t in gradient_and_product(losses.mean()))
    terms = [gradient_and_product(loss) for loss in losses]
    return torch.stack(
        [alpha * (Hg - Hg_bar).square().sum() + beta * (g - g_bar).square().sum() for g, Hg in terms]
    ).mean()


def test_gradients_are_those_of_double_backward() -> None:
    """Training would follow another direction than with graphs kept: in the features, or in the head."""
    (z, y), head = domains(), linear()
    z = [a.requires_grad_() for a in z]
    ours = hessian_alignment_penalty(z, y, head, alpha=0.7, beta=0.2)
    theirs = _double_backward_hgp(z, y, head, 0.7, 0.2)
    assert torch.allclose(ours, theirs, rtol=1e-10)
    wanted = [*z, *head.parameters()]
    for a, b in zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize(("kind", "head"), [("hgp", linear()), ("diagonal", linear()), ("hgp", _nonlinear())])
def test_gradients_through_a_body_are_finite_differences(kind: str, head: nn.Module) -> None:
    """Third derivatives of the loss, which reach the features' network, would be wrong."""
    x, y = domains((3, 4))
    w = torch.randn(4, 4, generator=seeded(4), dtype=torch.float64, requires_grad=True)
    penalty = HessianAlignmentPenalty(kind, detach_reference=False)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda w: penalty([torch.tanh(a @ w) for a in x], y, head), w)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0)])
def test_a_detached_reference_moves_hgp_only(alpha: float, beta: float) -> None:
    """Detaching would do nothing, or too much: deviations from the mean sum to 0, so there it cannot matter."""
    (z, y), head = domains(), linear()
    z = [a.requires_grad_() for a in z]
    kept, moved = (
        torch.autograd.grad(hessian_alignment_penalty(z, y, head, alpha=alpha, beta=beta, detach_reference=d), z)
        for d in (True, False)
    )
    assert torch.allclose(kept[0], moved[0], rtol=1e-6) == (alpha == 0)


@pytest.mark.parametrize("kind", ["hgp", "diagonal", "hutchinson"])
def test_equal_domains_cost_nothing(kind: str) -> None:
    """Domains that are the same batch would be pulled; a domain with permuted features must not be equal."""
    (z, y), head = domains((6,)), linear()
    z = [a.requires_grad_() for a in z]
    penalty = HessianAlignmentPenalty(kind, num_probes=4)  # type: ignore[arg-type]
    value = penalty(z * 2, y * 2, head, seeded(0))
    (slope,) = torch.autograd.grad(value, z)
    assert value.item() < 1e-28 and slope.abs().max().item() < 1e-13
    assert penalty([z[0], z[0][:, [1, 2, 3, 0]]], y * 2, head, seeded(0)).item() > 1e-3


def test_zero_gradients_give_finite_slopes() -> None:
    """|g| grad |g| is undefined at g = 0, which a fit reaches: classes balanced on zero features under a zero head."""
    head = nn.Linear(2, 2, dtype=torch.float64)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    z = [torch.zeros(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    value = hessian_alignment_penalty(z, [torch.tensor([0, 1])] * 2, head)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, z))


def test_hutchinson_has_the_diagonal_as_its_mean_and_the_known_variance() -> None:
    """The estimate would be biased, or noisier than random signs are: the variance of one is sum_j!=i H_ij^2."""
    (z, y), head = domains((9, 9)), linear()
    domain = head_domains(z, y, head)[0]
    _, H = derivatives(head, z[0], y[0])
    draws = 1500
    signs = 2.0 * torch.randint(2, (draws, len(H)), generator=seeded(5)).double() - 1
    with torch.no_grad():
        one = torch.stack([hutchinson_diagonal(domain, r[None]) for r in signs])
        together = hutchinson_diagonal(domain, signs)
    variance = (H.square().sum(1) - H.diagonal().square()).clamp(min=1e-30)
    error = (one.mean(0) - H.diagonal()) / (variance / draws).sqrt()
    assert error.abs().max().item() < 4
    assert torch.allclose(one.var(0), variance, rtol=0.25)
    assert torch.allclose(together, one.mean(0))


def test_few_probes_bias_the_squared_distance_upwards_by_their_variance() -> None:
    """The documented bias would be another: with common signs it is the variance of (H_e - Hbar)'s estimate."""
    (z, y), head = domains((9, 9)), linear()
    hessians = [derivatives(head, a, b)[1] for a, b in zip(z, y, strict=True)]
    difference = (hessians[0] - hessians[1]) / 2
    off_diagonal = difference.square().sum() - difference.diagonal().square().sum()
    exact = difference.diagonal().square().sum()
    generator, probes, penalty = seeded(6), 5, HessianAlignmentPenalty("hutchinson", beta=0.0, num_probes=5)
    with torch.no_grad():
        values = torch.stack([penalty(z, y, head, generator) for _ in range(300)])
    assert abs(values.mean() - exact - off_diagonal / probes) < 4 * values.std() / 300**0.5
    assert (values.mean() - exact) > 4 * values.std() / 300**0.5


def test_signs_are_the_generators() -> None:
    """The estimate would use the global generator, or ignore the seed."""
    (z, y), head = domains(), linear()
    penalty, before = HessianAlignmentPenalty("hutchinson", num_probes=2), torch.get_rng_state()
    values = [penalty(z, y, head, seeded(s)).item() for s in (0, 0, 1)]
    assert values[0] == values[1] != values[2] and torch.equal(torch.get_rng_state(), before)


def test_bad_input_is_one_clear_error() -> None:
    """A step with one domain, an empty domain or wrong options would train on a meaningless penalty."""
    (z, y), head = domains(), linear()
    penalty = HessianAlignmentPenalty()
    wrong = [
        ((z[:1], y[:1], head), "1 domain"),
        (([], [], head), "0 domain"),
        ((z[0], y[0], head), "a list"),
        ((z, y[:2], head), "targets must be a list"),
        (([z[0], z[1][:0]], [y[0], y[1][:0]], head), "empty domains"),
        (([z[0], z[1][:, :2]], y[:2], head), "shape"),
        ((z, [a + 2 for a in y], head), "targets must lie"),
        ((z, y, nn.Flatten()), "no trainable parameters"),
    ]
    for arguments, message in wrong:
        with pytest.raises(InvalidInput, match=message):
            penalty(*arguments)
    with pytest.raises(InvalidInput, match="kind"):
        HessianAlignmentPenalty("fisher")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="alpha and beta"):
        HessianAlignmentPenalty(alpha=-1.0)
    with pytest.raises(InvalidInput, match="num_probes"):
        HessianAlignmentPenalty(num_probes=0)
    with pytest.raises(InvalidInput, match="reduction"):
        HessianAlignmentPenalty(reduction="max")
    with pytest.raises(InvalidInput, match="generator"):
        HessianAlignmentPenalty("hutchinson")(z, y, head)
    with pytest.raises(InvalidInput, match="Sequential"):
        HessianAlignmentPenalty("diagonal")(z, y, _nonlinear())
