"""The training loop: budget, phases, optimizers, bad input."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from assay.errors import InvalidInput
from assay.models.mlp import MLP
from assay.rules.backprop import Backprop
from assay.rules.fitting import fit
from assay.rules.mono_forward import MonoForward

SGD = partial(torch.optim.SGD, lr=0.1)


def _data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 6, generator=generator), torch.arange(24) % 3
    return list(zip(x.split(8), y.split(8), strict=True))


def _model() -> MLP:
    return MLP((6,), 3, width=5, depth=3, generator=torch.Generator().manual_seed(0))


def test_equals_a_plain_loop() -> None:
    """`fit` with backpropagation would do anything but the ordinary loop."""
    rule, plain = Backprop(_model()), _model()
    history = fit(rule, _data(), epochs=3, optimizer=SGD)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        losses = []
        for x, y in _data():
            optimizer.zero_grad()
            losses.append(F.cross_entropy(plain(x), y))
            losses[-1].backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(rule.model.parameters(), plain.parameters(), strict=True))
    assert history[-1]["loss"] == pytest.approx(sum(losses).item() / 3)


@pytest.mark.parametrize(("epochs", "counts"), [(3, [1, 1, 1]), (4, [1, 2, 1]), (8, [3, 2, 3]), (9, [3, 3, 3])])
def test_epochs_are_shared_among_phases(epochs: int, counts: list[int]) -> None:
    """The phases would not add up to the budget, or one would get nothing."""
    history = fit(MonoForward(_model(), 3, schedule="sequential"), _data(), epochs, SGD)
    assert [sum(row["phase"] == f"block{i}" for row in history) for i in (1, 2, 3)] == counts
    assert [row["epoch"] for row in history] == list(range(1, epochs + 1))


def test_each_phase_gets_a_fresh_optimizer_over_its_own_parameters() -> None:
    """Momentum of one phase would leak into the next."""
    rule, built = MonoForward(_model(), 3, schedule="sequential"), []

    def optimizer(parameters: tuple[torch.nn.Parameter, ...]) -> torch.optim.Optimizer:
        built.append({id(p) for p in parameters})
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    fit(rule, _data(), 3, optimizer)
    expected = [
        {id(p) for p in [*layer.parameters(), *project.parameters()]}
        for layer, project in zip(rule.layers, rule.projections, strict=True)
    ]
    assert built == expected


def test_validation_accuracy_and_batch_sources() -> None:
    """A loader, a list and a function would not be read alike, or the accuracy would not be that of predict."""
    x, y = (torch.cat(part) for part in zip(*_data(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    results = []
    for source in (_data(), _data, loader):
        rule = Backprop(_model())
        results.append((fit(rule, source, 2, SGD, val=loader), rule))
    assert results[0][0] == results[1][0] == results[2][0]
    history, rule = results[0]
    assert history[-1]["accuracy"] == pytest.approx((rule.predict(x).argmax(1) == y).double().mean().item())
    assert not rule.training


def test_refuses_too_few_epochs_and_spent_iterators() -> None:
    """A phase would be skipped in silence, or a used-up iterator would count as an epoch."""
    with pytest.raises(InvalidInput, match=r"3 phase\(s\)"):
        fit(MonoForward(_model(), 3, schedule="sequential"), _data(), 2)
    with pytest.raises(InvalidInput, match="no mini-batches"):
        fit(Backprop(_model()), iter(_data()), 2)
