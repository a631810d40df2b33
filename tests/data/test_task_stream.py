"""Task sequences against counts: which classes, how often, which samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, SubsetRandomSampler

from assay.data.task_stream import TaskStream, decreasing_frequencies, disjoint_tasks, recurring_tasks
from assay.errors import InvalidInput


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_frequencies_are_the_official_codes():
    """(1/K - k f / K)^E, normalised, is another formula; or the classes are not shuffled."""
    raw = [(1 / 10 - k * 0.05 / 10) ** 3 for k in range(10)]
    expected = sorted(value / sum(raw) for value in raw)
    found = decreasing_frequencies(10, 3.0, generator=_seeded(1))
    assert found.sort().values.tolist() == pytest.approx(expected, rel=1e-12)
    assert found.tolist() != pytest.approx(expected[::-1])


@settings(max_examples=20, deadline=None)
@given(K=st.integers(1, 12), c=st.integers(1, 12), T=st.integers(1, 30), seed=st.integers(0, 99))
def test_classes_of_a_task_are_distinct(K, c, T, seed):
    """A class is drawn twice, or one that does not exist."""
    if c > K:
        return
    tasks = recurring_tasks(K, T, c, generator=_seeded(seed))
    assert tasks.shape == (T, c) and tasks.dtype == torch.int64
    assert all(len(set(task)) == c and min(task) >= 0 and max(task) < K for task in tasks.tolist())


def test_classes_recur_as_often_as_their_frequencies_say():
    """Draws without replacement: P(k in task) = q_k + sum_j q_j q_k / (1 - q_j) for two classes, by hand."""
    q, T = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64), 20_000
    tasks = recurring_tasks(4, T, 2, q, generator=_seeded())
    for k in range(4):
        expected = q[k] + sum(q[j] * q[k] / (1 - q[j]) for j in range(4) if j != k)
        share = (tasks == k).any(dim=1).double().mean()
        assert abs(share - expected) < 4 * (expected * (1 - expected) / T) ** 0.5


def test_no_class_of_probability_zero_is_shown():
    """A frequency of 0 does not keep a class out."""
    tasks = recurring_tasks(4, 200, 2, torch.tensor([1.0, 0.0, 1.0, 1.0]), generator=_seeded())
    assert not (tasks == 1).any()


def test_disjoint_tasks_show_each_class_once():
    """A class recurs or is left out."""
    tasks = disjoint_tasks(12, 3, generator=_seeded())
    assert tasks.shape == (4, 3) and sorted(tasks.flatten().tolist()) == list(range(12))


def test_a_task_shows_samples_of_its_classes_only():
    """Samples of other classes, the same sample twice, or another number of them."""
    targets = torch.randint(5, (300,), generator=_seeded(2))
    tasks = recurring_tasks(5, 8, 2, generator=_seeded(3))
    for whole, part in zip(TaskStream(targets, tasks), TaskStream(targets, tasks, per_class=7), strict=True):
        assert whole.classes == part.classes == tuple(tasks[whole.number].tolist())
        members = {i for i, y in enumerate(targets.tolist()) if y in whole.classes}
        assert set(whole.indices.tolist()) == members and len(whole.indices) == len(members)
        assert sorted(targets[part.indices].tolist()) == sorted([k for k in part.classes for _ in range(7)])
        assert len(part.indices.unique()) == 14


def test_a_stream_repeats_itself_and_the_seed_decides():
    """Arms that share a seed see different samples, or all seeds the same; or a recurring class shows the same again."""
    targets, tasks = torch.arange(100) % 2, torch.tensor([[0], [0]])
    stream = TaskStream(targets, tasks, per_class=20, seed=1)
    first, again = ([task.indices.tolist() for task in stream] for _ in range(2))
    assert first == again and set(first[0]) != set(first[1])
    assert [task.indices.tolist() for task in TaskStream(targets, tasks, 20, seed=2)] != first


def test_all_classes_in_a_task_are_all_the_data():
    """With c = K the stream is not plain epochs over the data set."""
    targets = torch.arange(30) % 3
    for task in TaskStream(targets, recurring_tasks(3, 4, 3, generator=_seeded())):
        assert sorted(task.indices.tolist()) == list(range(30))


def test_torchs_loader_takes_a_task():
    """Indices do not serve a SubsetRandomSampler."""
    targets = torch.arange(40) % 4
    task = next(iter(TaskStream(targets, torch.tensor([[1, 3]]))))
    data = torch.utils.data.TensorDataset(torch.arange(40), targets)
    sampler = SubsetRandomSampler(task.indices.tolist(), generator=_seeded())
    seen = torch.cat([y for _, y in DataLoader(data, batch_size=6, sampler=sampler)])
    assert set(seen.tolist()) == {1, 3} and len(seen) == 20


def test_least_squares_accumulates_when_tasks_recur():
    """Exact projections onto recurring tasks of one consistent linear problem must end at its solution (Kaczmarz)."""
    generator = _seeded(5)
    X, w = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((24, 10), (10,)))
    targets = torch.arange(24) % 6
    found = torch.zeros(10, dtype=torch.float64)
    for task in TaskStream(targets, recurring_tasks(6, 400, 1, generator=generator)):
        rows = X[task.indices]
        found = found + torch.linalg.pinv(rows) @ (rows @ w - rows @ found)
    assert torch.allclose(found, w, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TaskStream(torch.tensor([0, 0, 2]), torch.tensor([[0, 1]])), "class 1 is in a task"),
        (lambda: TaskStream(torch.tensor([0.0]), torch.tensor([[0]])), "integers"),
        (lambda: TaskStream(torch.tensor([0]), torch.tensor([[0]]), per_class=0), "per_class"),
        (lambda: recurring_tasks(3, 5, 4), "1 to num_classes = 3"),
        (lambda: recurring_tasks(3, 5, 2, torch.tensor([1.0, 0.0, 0.0])), "above 0"),
        (lambda: recurring_tasks(3, 5, 2, torch.tensor([1.0, -1.0, 1.0])), "finite numbers"),
        (lambda: disjoint_tasks(10, 3), "divisor"),
        (lambda: decreasing_frequencies(30, 1.0), "factor"),
    ],
)
def test_bad_input_is_said_in_one_line(make, words):
    """A task without samples, or numbers out of range, are taken."""
    with pytest.raises(InvalidInput, match=words) as error:
        make()
    assert "\n" not in str(error.value)
