"""Knowledge accumulation against recalls and changes that are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.probes.knowledge_accumulation import KnowledgeAccumulation, accumulation, class_recalls
from assay.probes.view import View


def _random(T=30, K=5, c=2):
    generator = torch.Generator().manual_seed(0)
    recalls = torch.rand(T + 1, K, generator=generator, dtype=torch.float64)
    return recalls, torch.stack([torch.randperm(K, generator=generator)[:c] for _ in range(T)])


def test_recalls_are_those_of_scikit_learn():
    """A share is taken over predictions instead of samples, or of another class."""
    from sklearn.metrics import recall_score

    generator = torch.Generator().manual_seed(1)
    scores, targets = torch.randn(80, 4, generator=generator), torch.arange(80) % 4
    expected = recall_score(targets, scores.argmax(dim=1), average=None)
    assert class_recalls(scores, targets).tolist() == pytest.approx(expected.tolist())


def test_learned_and_forgotten_are_loops_over_tasks_and_classes():
    """A change is counted for the wrong side, task or sign."""
    recalls, tasks = _random()
    own, others = [], []
    for t, classes in enumerate(tasks.tolist()):
        for k in range(5):
            change = float(recalls[t + 1, k] - recalls[t, k])
            (own if k in classes else others).append(change)
    found = accumulation(recalls, tasks)
    assert found.learned == pytest.approx(np.mean(own)) and found.forgotten == pytest.approx(-np.mean(others))


def test_windows_and_slope_are_numpys():
    """The untrained network counts as a task, a window is off by one, or the slope is another line's."""
    recalls, tasks = _random()
    accuracy = recalls.mean(dim=1).numpy()[1:]
    found = accumulation(recalls, tasks, first=3, last=4)
    assert found.early == pytest.approx(accuracy[:3].mean()) and found.late == pytest.approx(accuracy[-4:].mean())
    assert found.gain == pytest.approx(found.late - found.early)
    assert found.slope == pytest.approx(np.polyfit(np.arange(30), accuracy, 1)[0])


def test_the_balance_of_learning_and_forgetting_is_the_rise():
    """What tasks give and take does not add up to the accuracy's rise: c learned - (K - c) forgotten per task, over K."""
    recalls, tasks = _random()
    found = accumulation(recalls, tasks)
    rise = float(recalls[-1].mean() - recalls[0].mean())
    assert 30 * (2 * found.learned - 3 * found.forgotten) / 5 == pytest.approx(rise)


def test_a_network_that_only_knows_its_last_task_accumulates_nothing():
    """Perfect on its task, blank elsewhere: accuracy must stay at c / K, with all forgotten."""
    tasks = torch.tensor([[0], [1]] * 20)
    recalls = torch.cat([torch.zeros(1, 2), torch.eye(2).repeat(20, 1)])
    found = accumulation(recalls, tasks)
    assert found.gain == 0 and found.early == 0.5 and found.learned == 1.0
    assert found.forgotten == pytest.approx(39 / 40)


class _Fixed(nn.Module):
    """Predicts the class that a table says."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def forward(self, x):
        return torch.eye(3)[self.said[x]]


def test_the_probe_follows_a_network_through_training():
    """Accuracy since the first measurement, or the distance from each class's best, is of other measurements."""
    data = [(torch.arange(3), torch.tensor([0, 1, 2]))]
    probe = KnowledgeAccumulation()
    guesses = ([0, 0, 0], [1, 1, 2], [2, 1, 1])
    values = [probe.measure(View(_Fixed(torch.tensor(said))), data) for said in guesses]
    assert [v["class_accuracy"] for v in values] == pytest.approx([1 / 3, 2 / 3, 1 / 3])
    assert [v["accumulated"] for v in values] == pytest.approx([0, 1 / 3, 0])
    assert [v["below_best"] for v in values] == pytest.approx([0, 1 / 3, 2 / 3])
    assert [v["class_accuracy/1"] for v in values] == [0, 1, 1] and values[1]["class_accuracy_worst"] == 0
    found = accumulation(torch.stack(probe.recalls), torch.tensor([[1], [1]]))
    assert found.learned == 0.5 and found.forgotten == pytest.approx(0.25)


def test_bad_input_is_said_in_one_line():
    """Recalls of another length, missing classes or another network are taken."""
    recalls, tasks = _random()
    for wrong, words in [
        ((recalls[:-1], tasks), "recalls"),
        ((recalls * torch.nan, tasks), "samples of every class"),
        ((recalls, tasks, 0), "windows"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            accumulation(*wrong)
    probe = KnowledgeAccumulation()
    probe.measure(View(nn.Identity()), [(torch.eye(2), torch.arange(2))])
    with pytest.raises(InvalidInput, match="one probe per network"):
        probe.measure(View(nn.Identity()), [(torch.eye(3), torch.arange(3))])
