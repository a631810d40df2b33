"""DiffGrad against its equations in Python floats, its limits in Adam, and its dependence on the loss's scale."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.names import resolve
from assay.optim.diffgrad import DiffGrad, friction


def generator(seed=0):
    """A generator of a test's own."""
    return torch.Generator().manual_seed(seed)


def run(make, steps=20, scale=1.0, shape=(4, 3)):
    """Return a float64 parameter after steps with seeded gradients, times a scale."""
    own = generator()
    p = torch.nn.Parameter(torch.randn(shape, generator=own, dtype=torch.float64))
    optimizer = make([p])
    for _ in range(steps):
        p.grad = scale * torch.randn(shape, generator=own, dtype=torch.float64)
        optimizer.step()
    return p.detach()


def by_hand(lr, betas, eps, decay, decoupled, xi, steps=20):
    """The equations entry by entry in Python floats; `xi` is a function of (change, sqrt(v / (1 - b2^t)))."""
    own = generator()
    values = torch.randn((4, 3), generator=own, dtype=torch.float64).flatten().tolist()
    m, v, last = [0.0] * 12, [0.0] * 12, [0.0] * 12
    for t in range(1, steps + 1):
        for i, g in enumerate(torch.randn((4, 3), generator=own, dtype=torch.float64).flatten().tolist()):
            if decoupled:
                values[i] -= lr * decay * values[i]
            else:
                g += decay * values[i]
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g
            v[i] = betas[1] * v[i] + (1 - betas[1]) * g * g
            corrected = math.sqrt(1 - betas[1] ** t)
            size = lr * corrected / (1 - betas[0] ** t) * xi(abs(last[i] - g), math.sqrt(v[i]) / corrected)
            values[i] -= size * m[i] / (math.sqrt(v[i]) + eps)
            last[i] = g
    return torch.tensor(values, dtype=torch.float64).view(4, 3)


def logistic(change, root):
    """The paper's coefficient."""
    return 1 / (1 + math.exp(-change))


FRICTIONS = {
    "sigmoid": ("sigmoid", logistic),
    "normalized": ("normalized", lambda change, root: logistic(change / (root + 1e-3), root)),
    "own": (torch.square, lambda change, root: change**2),
}


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("name", FRICTIONS)
def test_steps_against_the_equations(name, decoupled):
    """A moment, a correction, the decay, the friction or the order in which they are used would be wrong."""
    given_friction, xi = FRICTIONS[name]
    options = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3}
    found = run(lambda p: DiffGrad(p, **options, weight_decay=0.1, decoupled=decoupled, friction=given_friction))
    expected = by_hand(**options, decay=0.1, decoupled=decoupled, xi=xi)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("constant", [1.0, 0.5])
def test_with_constant_friction_it_is_adam(constant):
    """Without the change of the gradient nothing but Adam, at the learning rate times the constant, may be left."""
    ours = run(lambda p: DiffGrad(p, lr=0.1, eps=1e-14, friction=lambda change: torch.full_like(change, constant)))
    theirs = run(lambda p: torch.optim.Adam(p, lr=0.1 * constant, eps=1e-14))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_equal_gradients_halve_the_step_from_the_second_on():
    """The stored gradient would be an alias of the current one, or the one of two steps ago."""
    p, q = (torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    ours, adam = DiffGrad([p], lr=0.1, eps=0.0), torch.optim.Adam([q], lr=0.1, eps=0.0)
    for step in range(4):
        before = p.detach().clone(), q.detach().clone()
        for x in (p, q):
            x.grad = torch.tensor([3.0, -0.2, 40.0], dtype=torch.float64)
        ours.step()
        adam.step()
        ratio = (p.detach() - before[0]) / (q.detach() - before[1])
        expected = p.grad.abs().sigmoid() if step == 0 else torch.full_like(ratio, 0.5)
        torch.testing.assert_close(ratio, expected)


def test_a_gradient_zeroed_in_place_is_still_remembered():
    """The official first version stored a reference: zeroing gradients in place made every change 0."""
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = DiffGrad([p], lr=0.1)
    p.grad = torch.tensor([5.0, -7.0])
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert optimizer.state[p]["previous_grad"].tolist() == [5.0, -7.0]


def test_the_loss_scale_moves_it_between_adam_and_adam_at_half_the_rate():
    """Its known weakness: it would be scale invariant, as Adam is, or tend to the wrong limits."""
    small, large = (run(lambda p: DiffGrad(p, lr=0.05, eps=0.0), scale=c) for c in (1e-9, 1e9))
    half, full = (run(lambda p, lr=lr: torch.optim.Adam(p, lr=lr, eps=0.0)) for lr in (0.025, 0.05))
    torch.testing.assert_close(small, half, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(large, full, rtol=1e-7, atol=1e-7)
    assert (small - large).abs().max() > 0.1


def test_the_normalized_friction_does_not_depend_on_the_loss_scale():
    """The variant that is ours would have the paper's weakness."""
    small, large = (run(lambda p: DiffGrad(p, lr=0.05, eps=0.0, friction="normalized"), scale=c) for c in (1e-6, 1e6))
    torch.testing.assert_close(small, large, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=8))
def test_friction_is_between_a_half_and_one(pairs):
    """It would brake below half a step, push beyond a whole one, or depend on the direction of the change."""
    gradient, previous = torch.tensor(pairs, dtype=torch.float64).T
    xi = friction(gradient, previous)
    assert ((xi >= 0.5) & (xi <= 1)).all()
    assert torch.equal(xi, friction(previous, gradient))
    assert torch.equal(friction(gradient, gradient), torch.full_like(gradient, 0.5))


def test_the_friction_survives_copies_and_names():
    """A copied or named optimizer would fall back to the default friction."""
    p = torch.nn.Parameter(torch.zeros(2))
    named = resolve("optim", "diffgrad(lr=0.5, friction='normalized')")([p])
    assert isinstance(named, DiffGrad)
    assert copy.deepcopy(named).friction == "normalized"


def test_states_take_three_buffers():
    """Memory would not be what the module says."""
    p = torch.nn.Parameter(torch.zeros(10, 10))
    optimizer = DiffGrad([p])
    p.grad = torch.ones(10, 10)
    optimizer.step()
    assert sum(t.nbytes for t in optimizer.state[p].values()) == 3 * 400 + 4


def test_an_unknown_friction_is_refused():
    """A typo would train as something else."""
    with pytest.raises(InvalidInput, match=r"friction must be a function or one of sigmoid, normalized; got 'relu'"):
        DiffGrad([torch.nn.Parameter(torch.zeros(1))], friction="relu")
