"""The base class: phases, modes, clipping, state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.errors import InvalidInput
from assay.models.mlp import MLP
from assay.rules.backprop import Backprop
from assay.rules.mono_forward import MonoForward


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 6, generator=generator), torch.arange(12) % 3


def _mono(**options: object) -> MonoForward:
    return MonoForward(MLP((6,), 3, width=5, depth=3, generator=torch.Generator().manual_seed(0)), 3, **options)


@pytest.mark.parametrize("epochs", [1, 7, 0.5])
def test_phases_share_the_whole_budget(epochs: float) -> None:
    """A rule with several phases would train longer or shorter than one with a single phase."""
    rule = _mono(schedule="sequential")
    shares = [phase.epochs for phase in rule.phases(epochs)]
    assert len(shares) == 3 and sum(shares) == pytest.approx(epochs)


def test_phases_enter_in_turn_and_drop_old_gradients() -> None:
    """A phase would train the block of another, or leave stale gradients to an optimizer over all parameters."""
    rule, seen = _mono(schedule="sequential"), []
    for phase in rule.phases(3):
        assert all(p.grad is None for p in rule.parameters())
        assert list(phase.parameters) == rule.trained_parameters()
        rule.backward(*_batch())
        seen.append((phase.name, rule.phase))
    assert seen == [(name, name) for name in ("block1", "block2", "block3")]


@pytest.mark.parametrize("epochs", [0, -1])
def test_refuses_a_budget_of_nothing(epochs: int) -> None:
    """A budget of zero would silently train nothing."""
    with pytest.raises(InvalidInput, match="above 0"):
        list(_mono().phases(epochs))


def test_refuses_an_unknown_phase() -> None:
    """A misspelt phase would raise a bare ValueError of tuple.index."""
    with pytest.raises(InvalidInput, match="block1, block2, block3"):
        _mono(schedule="sequential").begin("block9")


def test_clip_bounds_each_local_loss_on_its_own() -> None:
    """One global norm would couple the blocks: a large gradient in one would shrink the step of another."""
    rule, (x, y) = _mono(), _batch()
    with torch.no_grad():
        rule.projections[0].weight.mul_(100)
    rule.backward(x, y)
    plain = [torch.cat([p.grad.flatten() for p in group]) for group in rule.groups()]
    clip = 1.01 * plain[2].norm().item()
    assert plain[0].norm() > 5 * clip
    rule.step(x, y, torch.optim.SGD(rule.parameters(), lr=0.0), clip)
    clipped = [torch.cat([p.grad.flatten() for p in group]) for group in rule.groups()]
    torch.testing.assert_close(clipped[2], plain[2])
    torch.testing.assert_close(clipped[0].norm().item(), clip, rtol=1e-4, atol=0)


def test_step_clears_steps_and_calls_the_hook() -> None:
    """`step` would accumulate over mini-batches or forget `after_step`."""

    class Counting(Backprop):
        steps = 0

        def after_step(self) -> None:
            self.steps += 1

    x, y = _batch()
    rule = Counting(MLP((6,), 3, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.0)
    rule.step(x, y, optimizer)
    first = [p.grad.clone() for p in rule.parameters()]
    rule.step(x, y, optimizer)
    assert rule.steps == 2
    assert all(torch.equal(a, p.grad) for a, p in zip(first, rule.parameters(), strict=True))


def test_prediction_restores_each_modules_own_mode() -> None:
    """A layer that the user froze in evaluation mode would come back in training mode."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    model[1].eval()
    rule = Backprop(model)
    assert not rule.predict(_batch()[0]).requires_grad
    assert [m.training for m in model] == [True, False, True, True] and rule.training


def test_frozen_blocks_stay_in_evaluation_mode() -> None:
    """Batch normalisation in a finished block would go on drifting while later blocks train."""
    rule = MonoForward(MLP((6,), 3, width=5, batch_norm=True), 3, schedule="sequential")
    rule.begin("block2")
    rule.train()
    statistics = rule.model.block1[1].running_mean.clone()
    rule.backward(*_batch())
    assert torch.equal(statistics, rule.model.block1[1].running_mean)
    assert not torch.equal(torch.zeros(5), rule.model.block2[1].running_mean)


def test_state_is_tensors_that_survive_a_clone() -> None:
    """The usual `{k: v.clone()}` snapshot of the best epoch would fail, or lose phase and generator."""
    rule = _mono(schedule="sequential", generator=torch.Generator().manual_seed(3))
    rule.begin("block2")
    torch.rand(5, generator=rule.generator)
    snapshot = {name: value.clone() for name, value in rule.state_dict().items()}
    expected = torch.rand(5, generator=rule.generator)
    rule.begin("block3")
    rule.load_state_dict(snapshot)
    assert rule.phase == "block2"
    assert torch.equal(torch.rand(5, generator=rule.generator), expected)


def test_model_stays_the_users_own() -> None:
    """The rule would train a copy, so that the user's model would not learn."""
    model = MLP((6,), 3, generator=torch.Generator().manual_seed(0))
    rule, (x, y) = Backprop(model), _batch()
    before = F.cross_entropy(model(x), y).item()
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.5)
    for _ in range(5):
        rule.step(x, y, optimizer)
    assert F.cross_entropy(model(x), y).item() < before
