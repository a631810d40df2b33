"""Latent exploration against linear generators, where everything is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.data.latent_exploration import LatentExploration
from assay.errors import InvalidInput
from assay.losses.distillation import distillation_loss


def _linear(seed, *shape):
    layer = nn.utils.skip_init(nn.Linear, *shape).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return layer


def _pca(D=5, d=2):
    """Return an orthonormal basis V (D, d), a mean, and the encoder and decoder of the subspace."""
    V = torch.linalg.qr(torch.randn(D, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    mean = torch.arange(D, dtype=torch.float64)
    return V, mean, lambda x: (x - mean) @ V, lambda z: z @ V.T + mean


def test_random_exploration_stays_in_the_subspace_with_the_right_covariance():
    """New inputs leave the generator's manifold, are off centre, or are not sigma^2 V V^T around it."""
    V, mean, encode, decode = _pca()
    x = mean + torch.ones(20_000, 2, dtype=torch.float64) @ V.T
    found = LatentExploration(encode, decode, sigma=0.7)(x) - x
    assert (found - found @ V @ V.T).abs().max() < 1e-12
    assert found.mean(dim=0).abs().max() < 4 * 0.7 / 20_000**0.5
    assert torch.allclose(torch.cov(found.T), 0.49 * V @ V.T, atol=0.02)


def test_a_step_raises_disagreement_by_eta_times_the_gradient():
    """The step goes down or aside, is of another length, or is of the whole batch instead of each sample."""
    student, teacher = _linear(1, 5, 3), _linear(2, 5, 3)
    _, mean, encode, decode = _pca()
    x = mean + torch.randn(6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z = encode(x).requires_grad_()

    def disagreement(x):
        return distillation_loss(student(x), teacher(x), reduction="none")

    before = disagreement(decode(z))
    (g,) = torch.autograd.grad(before.sum(), z)
    eta = 1e-5
    moved = LatentExploration(encode, decode, sigma=0.0, eta=eta)(x, student, teacher)
    assert torch.allclose((encode(moved) - z).norm(dim=1), torch.full((6,), eta, dtype=torch.float64), rtol=1e-6)
    assert torch.allclose(disagreement(moved) - before, eta * g.norm(dim=1), rtol=1e-2)
    twice = LatentExploration(encode, decode, sigma=0.0, eta=0.1, steps=2)(x, student, teacher)
    once = LatentExploration(encode, decode, sigma=0.0, eta=0.1)
    assert torch.allclose(twice, once(once(x, student, teacher), student, teacher))


def test_where_student_and_teacher_agree_nothing_moves():
    """A gradient of 0 is divided by its length."""
    student = _linear(1, 5, 3)
    _, _, encode, decode = _pca()
    x = decode(torch.zeros(2, 2, dtype=torch.float64))
    assert torch.equal(LatentExploration(encode, decode, sigma=0.0, eta=1.0)(x, student, student), x)


def test_it_leaves_no_trace_on_the_networks():
    """Batch statistics move, a mode stays changed, or gradients gather."""
    student = nn.Sequential(_linear(1, 5, 4), nn.BatchNorm1d(4).double(), nn.Dropout(), _linear(2, 4, 3))
    teacher = _linear(2, 5, 3).eval()
    student[2].eval()
    state = {name: t.clone() for name, t in student.state_dict().items()}
    modes = [m.training for m in student.modules()]
    _, _, encode, decode = _pca()
    x = torch.zeros(4, 5, dtype=torch.float64)
    found = LatentExploration(encode, decode, eta=0.5)(x, student, teacher)
    assert [m.training for m in student.modules()] == modes and not teacher.training and not found.requires_grad
    assert all(torch.equal(t, state[name]) for name, t in student.state_dict().items())
    assert all(p.grad is None for p in (*student.parameters(), *teacher.parameters()))
    frozen = student.requires_grad_(False)
    assert LatentExploration(encode, decode, eta=0.5)(x, frozen, teacher).shape == x.shape


def test_the_generator_decides_and_the_global_one_is_left_alone():
    """Two runs of one seed explore other inputs, or training's random numbers change."""
    _, _, encode, decode = _pca()
    x, state = torch.zeros(3, 5, dtype=torch.float64), torch.random.get_rng_state()
    first, again, other = (
        LatentExploration(encode, decode, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    found = first(x)
    assert torch.equal(found, again(x)) and not torch.equal(found, other(x)) and not torch.equal(found, first(x))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bad_input_is_said_in_one_line():
    """A step without networks, networks of other classes, or numbers out of range are taken."""
    _, _, encode, decode = _pca()
    x = torch.zeros(3, 5, dtype=torch.float64)
    explore = LatentExploration(encode, decode, eta=1.0)
    with pytest.raises(InvalidInput, match="needs a student and a teacher"):
        explore(x)
    with pytest.raises(InvalidInput, match="student has 3 classes and the teacher 4"):
        explore(x, _linear(1, 5, 3), _linear(1, 5, 4))
    for options in ({"sigma": -1.0}, {"eta": -1.0}, {"steps": 0}):
        with pytest.raises(InvalidInput, match="expected sigma"):
            LatentExploration(encode, decode, **options)
