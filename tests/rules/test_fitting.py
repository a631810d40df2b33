"""The training loop: budget, phases, optimizers, bad input."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
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


@pytest.mark.parametrize("target", [torch.zeros(8, 3), torch.zeros(8), torch.zeros(8, 3, dtype=torch.long)])
def test_refuses_to_score_what_is_no_class_label(target: Tensor) -> None:
    """Predicted classes would be compared with vectors or numbers, and the result be called accuracy."""
    with pytest.raises(InvalidInput, match="needs class labels"):
        fit(Backprop(_model()), _data(), 1, SGD, val=[(torch.zeros(8, 6), target)])


def test_refuses_too_few_epochs_and_spent_iterators() -> None:
    """A phase would be skipped in silence, or a used-up iterator would count as an epoch."""
    with pytest.raises(InvalidInput, match=r"3 phase\(s\)"):
        fit(MonoForward(_model(), 3, schedule="sequential"), _data(), 2)
    with pytest.raises(InvalidInput, match="no mini-batches"):
        fit(Backprop(_model()), iter(_data()), 2)


class _Once:
    """A loader that breaks down in the middle of one pass; its random numbers are those of the loader it wraps."""

    def __init__(self, loader: DataLoader, broken_pass: int) -> None:
        self.loader, self.left, self.generator = loader, broken_pass, loader.generator

    def __iter__(self) -> object:
        for index, batch in enumerate(self.loader):
            if index == 1 and self.left == 0:
                raise KeyboardInterrupt
            yield batch
        self.left -= 1


def _noisy_run() -> tuple[MonoForward, DataLoader]:
    """Return a rule whose model draws from the global generator and a loader that shuffles by its own."""
    net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    x, y = (torch.cat(part) for part in zip(*_data(), strict=True))
    loader = DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=torch.Generator().manual_seed(5))
    return MonoForward(net, 3, schedule="sequential"), loader


@pytest.mark.parametrize("broken_pass", range(5))
def test_a_broken_run_goes_on_bit_for_bit(broken_pass: int, tmp_path: Path) -> None:
    """Order, dropout, momentum or phase of a resumed run would be others than without the interruption."""
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    runs = []
    for broken in (False, True):
        torch.manual_seed(0)
        rule, loader = _noisy_run()
        arguments = {"epochs": 5, "optimizer": optimizer, "val": _data, "checkpoint": tmp_path / f"{broken}.pt"}
        if broken:
            with pytest.raises(KeyboardInterrupt):
                fit(rule, _Once(loader, broken_pass), **arguments)
            torch.manual_seed(0 if broken_pass == 0 else 99)
            rule, loader = _noisy_run()
        runs.append((fit(rule, loader, **arguments), rule.state_dict()))
    (history, state), (resumed, its_state) = runs
    assert history == resumed and len(history) == 5
    assert all(torch.equal(state[name], its_state[name]) for name in state)


def test_a_finished_run_is_loaded_and_one_phase_can_go_on(tmp_path: Path) -> None:
    """A second call would train again, or a longer budget would start from nothing."""
    path, straight = tmp_path / "run.pt", Backprop(_model())
    expected = fit(straight, _data(), 3, SGD)
    fit(Backprop(_model()), _data(), 2, SGD, checkpoint=path)
    written = path.stat().st_mtime_ns
    rule = Backprop(_model())
    assert fit(rule, _data(), 2, SGD, checkpoint=path) == expected[:2] and path.stat().st_mtime_ns == written
    assert fit(rule, _data(), 3, SGD, checkpoint=path) == expected
    assert all(torch.equal(a, b) for a, b in zip(rule.parameters(), straight.parameters(), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_refuses_a_checkpoint_of_another_run(tmp_path: Path) -> None:
    """Another rule, budget, model or file would be half loaded, or end in a traceback."""
    path = tmp_path / "run.pt"
    fit(MonoForward(_model(), 3, schedule="sequential"), _data(), 3, SGD, checkpoint=path)
    with pytest.raises(InvalidInput, match=r"of MonoForward with phases block1, block2, block3.*this is Backprop"):
        fit(Backprop(_model()), _data(), 3, SGD, checkpoint=path)
    with pytest.raises(InvalidInput, match=r"3 epochs.*and 6"):
        fit(MonoForward(_model(), 3, schedule="sequential"), _data(), 6, SGD, checkpoint=path)
    with pytest.raises(InvalidInput, match="does not fit this rule"):
        fit(MonoForward(MLP((6,), 3, width=7, depth=3), 3, schedule="sequential"), _data(), 3, SGD, checkpoint=path)
    path.write_bytes(b"nothing")
    with pytest.raises(InvalidInput, match="no checkpoint"):
        fit(Backprop(_model()), _data(), 3, SGD, checkpoint=path)


def test_a_rule_that_is_not_streaming_gets_all_samples_at_once() -> None:
    """A rule that needs the whole data would be given mini-batches."""
    seen: list[tuple[int, int]] = []

    class Whole(Backprop):
        streaming = False

        def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            seen.append((len(x), len(y)))
            return super().backward(x, y)

    fit(Whole(_model()), _data(), 2, SGD)
    assert seen == [(24, 24)] * 2
    with pytest.raises(InvalidInput, match="no mini-batches"):
        fit(Whole(_model()), [], 1)
