"""Armijo's rule: against steps searched by hand, its guarantee, and when it must not move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.optim.armijo import ArmijoDescent


def _closure(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def _bowl(seed: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Parameter, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    w = nn.Parameter(torch.randn(4, generator=generator, dtype=dtype))
    scales = torch.rand(4, generator=generator, dtype=dtype) * 5 + 0.1
    return w, lambda: (scales * w.square()).sum() / 2 + w.sin().sum()


@given(seed=st.integers(0, 10**6), lr=st.floats(0.01, 20), shrink=st.floats(0.2, 0.9))
@settings(max_examples=12, deadline=None)
def test_steps_are_those_searched_by_hand(seed: int, lr: float, shrink: float) -> None:
    """Another trial than the first that delivers its share of the slope would be taken, or the next start be wrong."""
    w, loss = _bowl(seed)
    optimizer = ArmijoDescent([w], lr=lr, c=0.3, shrink=shrink, expand=1.5)
    point, scale = w.detach().clone(), 1.0
    for _ in range(3):
        probe = nn.Parameter(point.clone())
        w.data.copy_(probe.data)
        before = loss()
        (g,) = torch.autograd.grad(before, w)
        scale = min(1.0, 1.5 * scale)
        while True:
            w.data.copy_(point - scale * lr * g)
            if loss() <= before - 0.3 * scale * lr * g.square().sum():
                break
            scale *= shrink
        expected = w.detach().clone()
        w.data.copy_(point)
        returned = optimizer.step(_closure(optimizer, loss), loss)
        torch.testing.assert_close(w.detach(), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(returned, before)
        point = expected


def test_trials_by_value_alone_take_the_same_steps_without_backward_passes() -> None:
    """The cheap form would search elsewhere, or go on to differentiate every trial."""
    runs = []
    for cheap in (False, True):
        w, loss = _bowl(0)
        optimizer, backwards = ArmijoDescent([w], lr=30.0), []
        w.register_hook(lambda g, seen=backwards: seen.append(g))  # type: ignore[misc]
        for _ in range(4):
            optimizer.step(_closure(optimizer, loss), loss if cheap else None)
        runs.append((w.detach().clone(), len(backwards)))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[1][1] == 4 < runs[0][1]


def test_groups_have_their_own_largest_steps() -> None:
    """A group's rate would be ignored, or a frozen one take part in the slope and so hold back the others."""
    a, b = (nn.Parameter(torch.tensor([2.0])) for _ in range(2))
    optimizer = ArmijoDescent([{"params": [a], "lr": 0.0}, {"params": [b], "lr": 0.5}], c=0.4)
    optimizer.step(_closure(optimizer, lambda: 50 * a.sum() + b.square().sum() / 2))
    assert a.item() == 2.0 and b.item() == 1.0


def test_groups_may_be_empty() -> None:
    """The memory of the last step would be looked for in the first group, which has no parameter yet."""
    ends = []
    for groups in (([],), ()):
        w, loss = _bowl(0)
        optimizer = ArmijoDescent([*({"params": group} for group in groups), {"params": [w]}], lr=30.0)
        for _ in range(3):
            optimizer.step(_closure(optimizer, loss))
        ends.append(w.detach().clone())
    assert torch.equal(ends[0], ends[1])
    assert ArmijoDescent([{"params": []}]).step(lambda: 3.0) == 3.0


def test_complex_parameters_go_down() -> None:
    """The gradient of a complex parameter is the direction of ascent, and its squared length the slope."""
    w = nn.Parameter(torch.tensor([1.0 + 2.0j]))
    optimizer = ArmijoDescent([w], lr=0.5)
    optimizer.step(_closure(optimizer, lambda: w.abs().square().sum()))
    assert w.item() == 0


def test_it_stays_where_no_step_is_acceptable_and_recovers() -> None:
    """Weights would be left at the last rejected trial, or all later steps be vanishingly small."""
    w = nn.Parameter(torch.tensor([1.0]))
    optimizer = ArmijoDescent([w], lr=1.0, max_trials=5)
    losses = iter([1.0, *[2.0] * 5])  # whatever is tried is worse
    optimizer.step(_closure(optimizer, lambda: w.sum() * 0.0 + w.sum() - w.sum().detach() + next(losses)))
    assert w.item() == 1.0
    optimizer.step(_closure(optimizer, lambda: w.square().sum() / 2))
    assert w.item() == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_moves_nothing(bad: float) -> None:
    """NaN would spread into the weights."""
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = ArmijoDescent([w])
    returned = optimizer.step(_closure(optimizer, lambda: w.sum() * bad))
    assert torch.equal(w.detach(), torch.tensor([1.0, 2.0])) and not torch.isfinite(returned)


def test_bad_input() -> None:
    """A wrong setting would show as an odd result, not as an error."""
    w = nn.Parameter(torch.ones(2))
    for options in (
        {"lr": -1.0},
        {"lr": float("nan")},
        {"c": 0.0},
        {"shrink": 1.0},
        {"expand": 0.5},
        {"max_trials": 0},
    ):
        with pytest.raises(InvalidInput):
            ArmijoDescent([w], **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty parameter list"):
        ArmijoDescent([])
    with pytest.raises(InvalidInput, match="got no closure"):
        ArmijoDescent([w]).step()
    with pytest.raises(InvalidInput, match="returned None"):
        ArmijoDescent([w]).step(lambda: None)
    table = nn.Embedding(3, 2, sparse=True)
    optimizer = ArmijoDescent(table.parameters())
    with pytest.raises(InvalidInput, match="dense gradients"):
        optimizer.step(_closure(optimizer, lambda: table(torch.tensor([1])).sum()))
