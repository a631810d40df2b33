"""StableSPAM against its six steps written entry by entry, the official code's counts, and torch's AdamW in the limit."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim.stable_spam import StableSPAM

SHAPES = [(), (3,), (2, 5), (2, 3, 4)]


def spiky(steps: int, shapes: list[tuple[int, ...]] = SHAPES, seed: int = 0) -> list[list[Tensor]]:
    """Gradients with heavy tails, so that clipping and norms have something to do, one list per step."""
    generator = torch.Generator().manual_seed(seed)
    return [[(2 * torch.randn(s, generator=generator, dtype=torch.float64)) ** 3 for s in shapes] for _ in range(steps)]


def run(
    gradients: list[list[Tensor]], make: Callable[[list[Tensor]], torch.optim.Optimizer], fall: float = 1.0
) -> list[Tensor]:
    """Step from ones on given gradients, the rate falling by a factor after each, and return the weights."""
    parameters = [torch.ones_like(g).requires_grad_() for g in gradients[0]]
    optimizer = make(parameters)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] * fall
    return [p.detach() for p in parameters]


def slow(
    gradients: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    gammas: tuple[float, float, float] = (0.7, 0.9, 0.999),
    reset_every: int = 0,
    total_steps: int | None = None,
    eta_min: float = 0.5,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    official: bool = False,
) -> Tensor:
    """The six steps for one tensor, entry by entry, with counters as the paper or as the official code keeps them."""
    shape = gradients[0].shape
    w = [1.0] * gradients[0].numel()
    m, v = [0.0] * len(w), [0.0] * len(w)
    peak = n1 = n2 = 0.0
    count = adam = 0
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.flatten().tolist()
        w = [x * (1 - lr * weight_decay) for x in w]
        s = (
            1.0
            if total_steps is None
            else eta_min + (1 - eta_min) * (1 + math.cos(math.pi * t / (total_steps + 1))) / 2
        )
        count, adam = count + 1, adam + 1
        largest = max(map(abs, g))
        peak = gammas[2] * peak + (1 - gammas[2]) * largest
        limit = peak / (1 - gammas[2] ** count)
        g = [x * limit / largest if abs(x) > limit else x for x in g]
        norm, a = math.sqrt(sum(x * x for x in g)), gammas[0] * s
        n1 = a * n1 + (1 - a) * norm
        n2 = gammas[1] * n2 + (1 - gammas[1]) * norm**2
        target = n1 / (1 - a**count) / (math.sqrt(n2 / (1 - gammas[1] ** count)) + eps)
        g = [x / norm * target if norm else x for x in g]
        resetting = reset_every > 0 and t % reset_every == 0
        if resetting:
            adam = 1
            if official:
                count = 1
            else:
                m, v = [0.0] * len(w), [0.0] * len(w)
        b1, b2 = betas[0] * s, betas[1]
        m = [b1 * x + (1 - b1) * y for x, y in zip(m, g, strict=True)]
        v = [b2 * x + (1 - b2) * y * y for x, y in zip(v, g, strict=True)]
        for i in range(len(w)):
            w[i] -= lr * m[i] / (1 - b1**adam) / (math.sqrt(v[i] / (1 - b2**adam)) + eps)
        if resetting and official:
            m, v = [0.0] * len(w), [0.0] * len(w)
    return torch.tensor(w, dtype=torch.float64).view(shape)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "schedule": {"total_steps": 60},
    "resets": {"reset_every": 7},
    "every-step": {"reset_every": 1},
    "all": {"reset_every": 9, "total_steps": 30, "eta_min": 0.3, "weight_decay": 0.1, "gammas": (0.85, 0.99999, 0.9)},
}


@pytest.mark.parametrize("official", [False, True], ids=["clean", "official"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_six_steps(options: dict[str, Any], official: bool) -> None:
    """A step, a count or the order of them would not be the paper's, or (official) not the official code's."""
    gradients = spiky(30)
    options = {"lr": 0.03, "reset_every": 0, **options}
    found = run(gradients, lambda p: StableSPAM(p, **options, reset="official" if official else "clean"))
    for i, weight in enumerate(found):
        expected = slow([step[i] for step in gradients], **options, official=official)
        torch.testing.assert_close(weight, expected, rtol=1e-12, atol=1e-13)


def test_without_its_parts_it_is_adamw() -> None:
    """The Adam at its centre would be another one."""
    gradients = spiky(20)
    options: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}
    found = run(gradients, lambda p: StableSPAM(p, **options, reset_every=0, clip=False, norm=False))
    expected = run(gradients, lambda p: torch.optim.AdamW(p, **options))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_reset_is_a_fresh_adam() -> None:
    """After a reset, moments or bias corrections would still know of the steps before."""
    gradients = spiky(9)

    def make(every: int) -> Callable[[list[Tensor]], StableSPAM]:
        return lambda parameters: StableSPAM(parameters, lr=0.02, reset_every=every, clip=False, norm=False)

    whole, before, fresh = run(gradients, make(5)), run(gradients[:4], make(5)), run(gradients[4:], make(0))
    for end, start, alone in zip(whole, before, fresh, strict=True):
        torch.testing.assert_close(end - start, alone - 1, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("compiled", "reset"), [(False, "clean"), (False, "official"), (True, "clean")])
def test_a_reset_forgets_an_overflow(compiled: bool, reset: str) -> None:
    """0 times a moment that is infinite is NaN, so that a reset would lose the weight instead of saving it."""
    torch._dynamo.reset()
    parameters = [torch.ones(3, requires_grad=True) for _ in range(2)]
    optimizer = StableSPAM(parameters, lr=0.1, reset_every=3, reset=reset)
    step = torch.compile(optimizer.step, fullgraph=True, backend="eager") if compiled else optimizer.step
    last = 3 if reset == "clean" else 4  # the official code clears at the end of the third step
    for t in range(1, last + 1):
        if t == last:
            optimizer.state[parameters[0]]["exp_avg"][0] = math.inf
            optimizer.state[parameters[0]]["exp_avg_sq"].fill_(math.inf)
        for parameter in parameters:
            parameter.grad = torch.tensor([1.0, -2.0, 0.5]) * t
        step()
    assert torch.equal(parameters[0], parameters[1])
    torch._dynamo.reset()


@settings(max_examples=15, deadline=None)
@given(power=st.integers(-3, 6), seed=st.integers(0, 99))
def test_the_scale_of_gradients_does_not_matter(power: int, seed: int) -> None:
    """AdaGN or AdaClip would depend on the loss's unit."""
    gradients = spiky(6, [(7,)], seed)
    scaled = [[10.0**power * g for g in step] for step in gradients]
    make = lambda p: StableSPAM(p, lr=0.05, reset_every=4, eps=1e-14)  # noqa: E731
    torch.testing.assert_close(run(scaled, make), run(gradients, make), rtol=1e-8, atol=1e-9)


def test_the_norm_it_hands_to_adam() -> None:
    """Constant norms would not come out as 1 / (1 + eps / norm), nor the first step unclipped."""
    gradients = [[g / g.norm() * 3 for g in step] for step in spiky(4, [(6,)])]
    parameter = torch.ones(6, dtype=torch.float64, requires_grad=True)
    optimizer = StableSPAM([parameter], lr=0.0, betas=(0.0, 0.0), eps=0.6, gammas=(0.7, 0.9, 0.0), reset_every=0)
    for (gradient,) in gradients:
        parameter.grad = gradient
        optimizer.step()
        # gamma3 = 0: the limit is this step's largest entry, so nothing is clipped
        assert optimizer.state[parameter]["exp_avg"].norm().item() == pytest.approx(1 / (1 + 0.6 / 3))
        torch.testing.assert_close(optimizer.state[parameter]["peak"], gradient.abs().max())


def test_the_marginal_entry_is_rescaled_below_the_limit() -> None:
    """AdaClip would be a clamp; it takes the largest entry to the limit and another one above it further down."""
    parameter = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = StableSPAM([parameter], betas=(0.0, 0.9), gammas=(0.7, 0.9, 0.5), norm=False, reset_every=0)
    for gradient in ([1.0, 0.0, 0.0], [10.0, 8.0, 1.0]):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    limit = (0.5 * 0.5 + 0.5 * 10) / (1 - 0.25)
    found = optimizer.state[parameter]["exp_avg"].tolist()
    assert found == pytest.approx([limit, 8 * limit / 10, 1.0])
    assert parameter.grad is not None and parameter.grad.tolist() == [10.0, 8.0, 1.0]


def test_after_the_last_step_the_schedule_stays() -> None:
    """Momentum would rise again in a run longer than planned."""
    parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = StableSPAM([parameter], lr=0.0, total_steps=3, eta_min=0.25, norm=False, clip=False)
    for step in range(9):
        parameter.grad = torch.ones(1, dtype=torch.float64)
        before = optimizer.state[parameter]["exp_avg"].item() if step else 0.0
        optimizer.step()
        if step >= 3:
            expected = 0.9 * 0.25 * before + (1 - 0.9 * 0.25)
            assert optimizer.state[parameter]["exp_avg"].item() == pytest.approx(expected)


@pytest.mark.parametrize("lr", [0.02, torch.tensor(0.02)], ids=["float", "tensor"])
def test_compiled_whole_it_takes_the_same_steps(lr: float | Tensor) -> None:
    """The step would have a graph break, compile again as steps go on or rates change, or differ when compiled."""
    torch._dynamo.reset()
    gradients = [[g.float() for g in step] for step in spiky(8)]
    make = lambda p: StableSPAM(p, lr=lr, reset_every=3, total_steps=8, weight_decay=0.1)  # noqa: E731
    expected = run(gradients, make, fall=0.9)
    parameters = [torch.ones_like(g).requires_grad_() for g in gradients[0]]
    optimizer = make(parameters)
    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(optimizer.step, fullgraph=True, backend=counter)
    frames = []
    for gradient in gradients:
        for parameter, g in zip(parameters, gradient, strict=True):
            parameter.grad = g.clone()
        step()
        frames.append(counter.frame_count)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] * 0.9
    assert len(set(frames[2:])) == 1, "it compiled again as steps went on"
    torch.testing.assert_close([p.detach() for p in parameters], expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_restored_run_goes_on_bit_for_bit(dtype: torch.dtype) -> None:
    """Running numbers would be rounded to the parameters' type on loading, as torch does to states."""
    gradients = [[g.to(dtype) for g in step] for step in spiky(12)]
    expected = run(gradients, lambda p: StableSPAM(p, lr=0.02, reset_every=8))
    parameters = [torch.ones_like(g).requires_grad_() for g in gradients[0]]
    optimizer = StableSPAM(parameters, lr=0.02, reset_every=8)
    for index, step in enumerate(gradients):
        if index == 6:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = StableSPAM(parameters)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True))
    assert optimizer.state[parameters[1]]["peak"].dtype == torch.promote_types(dtype, torch.float32)


def test_the_state_of_another_optimizer_is_refused() -> None:
    """A bare KeyError would be raised, with half of the state loaded."""
    parameter = torch.ones(2, requires_grad=True)
    parameter.grad = torch.ones(2)
    other, optimizer = torch.optim.AdamW([parameter]), StableSPAM([parameter])
    other.step()
    with pytest.raises(InvalidInput, match="no StableSPAM's"):
        optimizer.load_state_dict(other.state_dict())
    assert not optimizer.state and "gammas" in optimizer.param_groups[0]


def test_complex_parameters_are_pairs_of_real_ones() -> None:
    """Real and imaginary parts would be stepped otherwise than as entries of one real tensor."""
    real = spiky(6, [(4, 2)])
    found = run([[torch.view_as_complex(step[0])] for step in real], lambda p: StableSPAM(p, lr=0.1, reset_every=4))
    start = torch.view_as_real(torch.ones(4, dtype=torch.complex128))
    parameter = start.clone().requires_grad_()
    optimizer = StableSPAM([parameter], lr=0.1, reset_every=4)
    for (gradient,) in real:
        parameter.grad = gradient
        optimizer.step()
    torch.testing.assert_close(torch.view_as_real(found[0]), parameter.detach())


def test_missing_empty_and_infinite_gradients() -> None:
    """A parameter without a gradient would move or count, an empty one raise, or one infinity spoil other tensors."""
    idle, empty, bad, good = (torch.ones(n, requires_grad=True) for n in (2, 0, 2, 2))
    optimizer = StableSPAM([idle, empty, bad, good], lr=0.1)
    empty.grad, bad.grad, good.grad = torch.zeros(0), torch.tensor([math.inf, 1.0]), torch.tensor([1.0, -1.0])
    optimizer.step()
    assert idle.tolist() == [1.0, 1.0] and not optimizer.state[idle]
    assert good.tolist() == pytest.approx([0.9, 1.1]) and bad.isnan().any()


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": math.nan},
        {"betas": (1.0, 0.9)},
        {"gammas": (0.5, 0.5)},
        {"gammas": (0.5, 0.5, 1.0)},
        {"reset_every": -1},
        {"reset_every": 2.5},
        {"total_steps": 0},
        {"eta_min": 1.5},
        {"eps": -1e-8},
        {"weight_decay": -0.1},
        {"reset": "paper"},
    ],
    ids=str,
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    """A typing error would train, badly."""
    with pytest.raises(InvalidInput, match=next(iter(options))):
        StableSPAM([torch.zeros(1, requires_grad=True)], **options)


def test_sparse_gradients_and_empty_lists_are_refused() -> None:
    """They would fail somewhere inside a multi-tensor operation."""
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    weight.grad = torch.eye(3, 2).to_sparse()
    with pytest.raises(InvalidInput, match="sparse"):
        StableSPAM([weight]).step()
    with pytest.raises(ValueError, match="empty"):
        StableSPAM([])
