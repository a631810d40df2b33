import math

import pytest
import torch
import torch.nn.functional as F

from assay.errors import InvalidInput
from assay.probes.energy import backprop_signal, energy_gradient, feature_energy, ridge_head, ridge_signal


def random(*shape, seed=0):
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(n, classes=4, seed=1):
    """Classes, the largest one present."""
    found = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    found[0] = classes - 1
    return found


def table(modulus):
    """All pairs, one-hot and scaled to norm 1, and their sums."""
    pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    return F.one_hot(pairs, modulus).flatten(1).double() / math.sqrt(2), pairs.sum(dim=1) % modulus, pairs


def projector(n):
    """P = I - 1 1^T / n."""
    return torch.eye(n, dtype=torch.float64) - 1 / n


@pytest.mark.parametrize(("n", "K"), [(12, 30), (30, 12), (20, 20)])
def test_ridge_signal_is_the_residual_and_the_closed_form(n, K):
    """One of the three forms of G_F, the ridge solution, or the centring is wrong."""
    features, y, eta = random(n, K), labels(n), 0.3
    P = projector(n)
    Fc, Yc = P @ features, P @ F.one_hot(y).double()
    A = torch.linalg.inv(Fc @ Fc.T + eta * torch.eye(n).double())
    B = torch.linalg.inv(Fc.T @ Fc + eta * torch.eye(K).double())
    expected = eta * A @ Yc @ Yc.T @ A @ Fc
    torch.testing.assert_close(ridge_signal(features, y, eta), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(eta * A @ Yc @ Yc.T @ Fc @ B, expected, rtol=1e-10, atol=1e-12)
    V = ridge_head(features, y, eta)
    torch.testing.assert_close(V, B @ Fc.T @ Yc, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(backprop_signal(features, y, V), expected, rtol=1e-9, atol=1e-11)


def test_backprop_signal_is_minus_the_gradient():
    """The signal is not what backpropagation sends to the features, for any top layer."""
    features, y, V = random(9, 5).requires_grad_(), labels(9), random(5, 4, seed=2)
    loss = (projector(9) @ (F.one_hot(y).double() - features @ V)).square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, features)
    torch.testing.assert_close(backprop_signal(features.detach(), y, V), -gradient)


@pytest.mark.parametrize(("K", "fits"), [(40, True), (8, False)])
def test_weight_decay_carries_the_signal_of_a_fitted_network_only(K, fits):
    """The signal is not proportional to small eta where features can fit the targets, or vanishes where they cannot."""
    features, y = random(20, K), labels(20)
    norms = [ridge_signal(features, y, eta).norm().item() for eta in (1e-5, 1e-7)]
    assert norms[0] / norms[1] == pytest.approx(100 if fits else 1, rel=1e-3)


def test_energy_by_its_definition_and_its_gradient():
    """The energy is not half the squared norm of class sums, or its gradients are wrong."""
    features, y = random(11, 6), labels(11)
    for j in range(6):
        deviations = [
            sum(features[i, j] for i in range(11) if y[i] == c) - (y == c).sum() * features[:, j].mean()
            for c in range(4)
        ]
        assert feature_energy(features, y)[j].item() == pytest.approx(sum(d.item() ** 2 for d in deviations) / 2)
    F_ = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(feature_energy(F_, y).sum(), F_)
    torch.testing.assert_close(energy_gradient(features, y), gradient)
    X, w = random(11, 3, seed=3), random(3, 2, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: feature_energy((X @ w).square(), y), (w,))


@pytest.mark.parametrize("modulus", [5, 8, 13])
def test_energy_of_single_frequencies(modulus):
    """The energy of a Fourier mode is not M / 16, or M / 8 for the alternating mode of even M, whatever the phases."""
    X, y, _ = table(modulus)
    t = torch.arange(modulus, dtype=torch.float64)
    for k in range(1, modulus // 2 + 1):
        angle = 2 * math.pi * k * t / modulus
        alternating = 2 * k == modulus
        u, v = (torch.cos(angle), torch.cos(angle)) if alternating else (torch.cos(angle + 0.4), torch.cos(angle - 1.1))
        w = F.normalize(torch.cat([u, v]), dim=0)[:, None]
        expected = modulus / (8 if alternating else 16)
        assert feature_energy((X @ w).square(), y).item() == pytest.approx(expected, rel=1e-12)
        assert feature_energy((2**0.5 * X @ w).square(), y).item() == pytest.approx(4 * expected, rel=1e-12)


def test_single_frequencies_are_local_maxima_and_mixtures_are_not():
    """On the sphere the gradient at a Fourier mode does not vanish, the Hessian has a rising direction; a mixture is one."""
    modulus = 7
    X, y, _ = table(modulus)
    angle = 2 * math.pi * torch.arange(modulus, dtype=torch.float64) / modulus

    def energy(w):
        return feature_energy((X @ F.normalize(w, dim=0)[:, None]).square(), y)[0]

    def curvature(w):
        gradient = torch.autograd.functional.jacobian(energy, w)
        return gradient.norm().item(), torch.linalg.eigvalsh(torch.autograd.functional.hessian(energy, w))[-1].item()

    pure = F.normalize(torch.cos(angle).repeat(2), dim=0)
    mixed = F.normalize((torch.cos(angle) + torch.cos(2 * angle)).repeat(2), dim=0)
    slope, top = curvature(pure)
    assert slope < 1e-12 and top < 1e-10
    slope, top = curvature(mixed)
    assert slope < 1e-12 and top > 1e-3  # stationary by symmetry, but a saddle


def test_functions_of_one_operand_carry_no_energy():
    """A sum of a function of i and one of j, which tells nothing of i + j, has energy on the whole table."""
    _, y, pairs = table(9)
    features = random(9, 5)[pairs[:, 0]] + random(9, 5, seed=5)[pairs[:, 1]]
    assert feature_energy(features, y).max() < 1e-20


def test_infinitely_wide_nodes_are_independent_on_the_whole_table():
    """The square's kernel does not act as a number on the targets, so that stage II's claim would not hold there."""
    X, y, _ = table(7)
    inner = 2 * X @ X.T
    kernel = 4 + 2 * inner.square()  # E (w.x)^2 (w.x')^2 for normal w and |x|^2 = 2
    for keep, independent in ((torch.arange(49), True), (torch.arange(49)[:30], False)):
        P = projector(len(keep))
        Yc = P @ F.one_hot(y[keep], 7).double()
        solved = torch.linalg.solve(P @ kernel[keep][:, keep] @ P + 0.1 * torch.eye(len(keep)).double(), Yc)
        scale = (solved * Yc).sum() / Yc.square().sum()
        assert bool((solved - scale * Yc).norm() < 1e-10 * solved.norm()) is independent


def test_alignment_of_the_ridge_signal_rises_with_width():
    """Columns of the signal do not approach the gradient of each node's own energy as the network widens."""
    X, y, _ = table(7)
    cosines = []
    for K in (60, 600, 6000):
        features = (X @ random(14, K)).square()
        eta = 1e-3 * features.square().sum().item() / len(y)
        signal, gradient = ridge_signal(features, y, eta), energy_gradient(features, y)
        cosines.append(F.cosine_similarity(signal, gradient, dim=0).mean().item())
    assert cosines[0] < cosines[1] < cosines[2] and cosines[2] > 0.95


def test_nodes_repel_by_what_the_others_do_not_explain():
    """b_jl has not the sign opposite to the similarity after taking away all other nodes; plain similarity is not it."""
    features, eta = projector(10) @ random(10, 6), 0.2
    C = features.T @ features
    B = torch.linalg.inv(C + eta * torch.eye(6).double())
    plain = []
    for j in range(6):
        for other in range(j):
            rest = features[:, [i for i in range(6) if i not in (j, other)]]
            away = torch.eye(10).double() - rest @ torch.linalg.solve(
                rest.T @ rest + eta * torch.eye(4).double(), rest.T
            )
            similarity = features[:, j] @ away @ features[:, other]
            assert torch.sign(B[j, other]) == -torch.sign(similarity)
            plain.append(bool(torch.sign(B[j, other]) == -torch.sign(C[j, other])))
    assert not all(plain)


def test_permuting_nodes_permutes_the_signal():
    """A node's signal depends on its place."""
    features, y, order = random(8, 12), labels(8), torch.randperm(12, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ridge_signal(features[:, order], y, 0.1), ridge_signal(features, y, 0.1)[:, order])


@pytest.mark.parametrize(
    "call",
    [
        lambda: feature_energy(torch.zeros(3), torch.zeros(3, dtype=torch.long)),
        lambda: feature_energy(torch.zeros(3, 2), torch.zeros(4, dtype=torch.long)),
        lambda: feature_energy(torch.zeros(3, 2), torch.zeros(3)),
        lambda: feature_energy(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)),
        lambda: ridge_signal(torch.zeros(3, 2), torch.arange(3), 0.0),
        lambda: ridge_head(torch.zeros(3, 2), torch.arange(3), float("nan")),
        lambda: backprop_signal(torch.zeros(3, 2), torch.arange(3), torch.zeros(3, 2)),
    ],
)
def test_bad_input_is_refused_in_one_line(call):
    """Wrong shapes or a missing weight decay give a number."""
    with pytest.raises(InvalidInput) as error:
        call()
    assert "\n" not in str(error.value)
