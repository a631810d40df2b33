"""SAM against the equations on a quadratic, its base optimizer at rho = 0, and what a wrapper must not lose."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from assay.optim.perp_grad import PerpGrad
from assay.optim.sam import SAM

Closure = Callable[[], Tensor]


def _quadratic(seed: int = 0) -> tuple[Tensor, Tensor, list[nn.Parameter], Closure]:
    """Return H, w, the parameters (of shapes (3, 2) and (4,)) that hold w, and a closure of w H w / 2."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(10, 10, generator=generator, dtype=torch.float64)
    h, w = root @ root.T / 10, torch.randn(10, generator=generator, dtype=torch.float64)
    parameters = [nn.Parameter(w[:6].view(3, 2).clone()), nn.Parameter(w[6:].clone())]

    def closure() -> Tensor:
        flat = torch.cat([p.flatten() for p in parameters])
        loss = flat @ h @ flat / 2
        loss.backward()
        return loss

    return h, w, parameters, closure


def _flat(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


@pytest.mark.parametrize("adaptive", [False, True])
def test_steps_with_the_gradient_uphill(adaptive: bool) -> None:
    """The step would not be H (w + e) with e taken over all tensors and groups as one vector, at w."""
    h, w, parameters, closure = _quadratic()
    optimizer = SAM(torch.optim.SGD([{"params": [p]} for p in parameters], lr=0.1), rho=0.7, adaptive=adaptive)
    g = h @ w
    e = 0.7 * w.square() * g / (w.abs() * g).norm() if adaptive else 0.7 * g / g.norm()
    loss = optimizer.step(closure)
    torch.testing.assert_close(loss.detach(), w @ h @ w / 2)
    torch.testing.assert_close(_flat(parameters), w - 0.1 * h @ (w + e), rtol=1e-12, atol=1e-12)


def test_the_base_has_its_own_say() -> None:
    """Momentum and decay of the base would be lost, or act on the gradient at w."""
    h, w, parameters, closure = _quadratic(1)
    optimizer = SAM(torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.2), rho=0.3)
    velocity = torch.zeros_like(w)
    for _ in range(3):
        g = h @ w
        velocity = 0.9 * velocity + h @ (w + 0.3 * g / g.norm()) + 0.2 * w
        w = w - 0.1 * velocity
        optimizer.step(closure)
    torch.testing.assert_close(_flat(parameters), w, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.AdamW])
def test_without_a_neighbourhood_it_is_the_base(make: type[torch.optim.Optimizer]) -> None:
    """At rho = 0 the bits would differ from the base optimizer's."""
    runs = []
    for wrapped in (False, True):
        _, _, parameters, closure = _quadratic(2)
        base = make(parameters, lr=0.05)
        optimizer = SAM(base, rho=0.0) if wrapped else base
        for _ in range(4):
            optimizer.zero_grad()
            optimizer.step(closure)
        runs.append(_flat(parameters))
    assert torch.equal(*runs)


def test_each_group_has_its_own_radius() -> None:
    """A group's `rho` would be ignored; with 0 its weights stay where they are while the others climb."""
    h, w, parameters, closure = _quadratic(3)
    groups = [{"params": parameters[:1], "rho": 0.0}, {"params": parameters[1:]}]
    SAM(torch.optim.SGD(groups, lr=0.1), rho=0.5).step(closure)
    g = h @ w
    e = torch.cat([torch.zeros(6), 0.5 * g[6:] / g.norm()])
    torch.testing.assert_close(_flat(parameters), w - 0.1 * h @ (w + e), rtol=1e-12, atol=1e-12)


def test_weights_come_back_even_when_the_closure_fails() -> None:
    """An interrupted second pass would leave the model uphill, and a step of size 0 would move it by rounding."""
    _, w, parameters, closure = _quadratic(4)
    calls = []

    def failing() -> Tensor:
        calls.append(_flat(parameters))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return closure()

    optimizer = SAM(torch.optim.SGD(parameters, lr=0.0), rho=0.5)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(failing)
    assert torch.equal(_flat(parameters), w)
    assert float((calls[1] - w).norm()) == pytest.approx(0.5)
    optimizer.step(closure)
    assert torch.equal(_flat(parameters), w)


def test_a_flat_start_is_no_division_by_zero() -> None:
    """Zero gradients would become NaN."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer = SAM(torch.optim.SGD([weight], lr=0.1))

    def closure() -> Tensor:
        loss = weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(weight.detach(), torch.zeros(3))


def test_half_precision_has_room_for_the_norm() -> None:
    """Squares of gradients would overflow float16, so that nothing climbs."""
    weight = nn.Parameter(torch.full((4,), 3.0, dtype=torch.float16))
    seen = []

    def closure() -> Tensor:
        seen.append(weight.detach().clone())
        loss = (weight * 300).sum()
        loss.backward()
        return loss

    SAM(torch.optim.SGD([weight], lr=0.0), rho=1.0).step(closure)
    assert torch.equal(seen[1], torch.full((4,), 3.5, dtype=torch.float16))


def test_schedulers_and_checkpoints_are_the_bases() -> None:
    """A scheduler on either would not reach the other, or a plain checkpoint could not be read."""
    _, _, parameters, closure = _quadratic(5)
    base = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    base.zero_grad()
    base.step(closure)
    plain = copy.deepcopy(base.state_dict())
    optimizer = SAM(base, rho=0.2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=4)
    optimizer.step(closure)
    schedule.step()
    assert base.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] != 0.1
    optimizer.load_state_dict(plain)
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state
    assert optimizer.param_groups[0]["rho"] == 0.2 and optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(optimizer.state[parameters[1]]["momentum_buffer"], plain["state"][1]["momentum_buffer"])
    saved = SAM(torch.optim.SGD(parameters, lr=0.1), rho=0.9, adaptive=True).state_dict()
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["rho"] == 0.9 and optimizer.param_groups[0]["adaptive"]


def test_a_group_added_later_is_trained() -> None:
    """Unfrozen layers would be left out by the base, or climb with no radius."""
    h, w, parameters, closure = _quadratic(6)
    optimizer = SAM(torch.optim.SGD(parameters[:1], lr=0.1), rho=0.4)
    optimizer.add_param_group({"params": parameters[1:]})
    assert optimizer.param_groups[1]["rho"] == 0.4 and len(optimizer.base.param_groups) == 2
    optimizer.step(closure)
    g = h @ w
    torch.testing.assert_close(_flat(parameters), w - 0.1 * h @ (w + 0.4 * g / g.norm()), rtol=1e-12, atol=1e-12)


def test_transforms_see_both_gradients() -> None:
    """A transform put on SAM would miss the gradient that decides where uphill is."""
    h, w, _, _ = _quadratic(7)
    joined = nn.Parameter(w.clone())

    def whole() -> Tensor:
        loss = joined @ h @ joined / 2
        loss.backward()
        return loss

    optimizer = SAM(torch.optim.SGD([joined], lr=0.1), rho=0.5)
    PerpGrad(optimizer, rescale=False)
    optimizer.step(whole)

    def across(v: Tensor, g: Tensor) -> Tensor:
        return g - (v @ g) / (v @ v) * v

    g = across(w, h @ w)
    up = w + 0.5 * g / g.norm()
    torch.testing.assert_close(joined.detach(), w - 0.1 * across(up, h @ up), rtol=1e-12, atol=1e-12)


def test_says_what_it_needs() -> None:
    """A step without a closure, a list of parameters, a sparse gradient or a wrong radius would fail obscurely."""
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"no closure; call step\(closure\)"):
        SAM(torch.optim.SGD([weight], lr=0.1)).step()
    with pytest.raises(ValueError, match=r"got list; write SAM\("):
        SAM([weight])  # type: ignore[arg-type]
    for rho in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rho must be"):
            SAM(torch.optim.SGD([weight], lr=0.1), rho=rho)
    table = nn.Embedding(5, 3, sparse=True)

    def closure() -> Tensor:
        loss = table(torch.tensor([1, 2])).square().sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"dense gradients.*\(5, 3\)"):
        SAM(torch.optim.SGD(table.parameters(), lr=0.1)).step(closure)
