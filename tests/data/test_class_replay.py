"""Replay rules against sequences that were worked out by hand."""

from __future__ import annotations

import pytest
import torch

from assay.data.class_replay import FrequencyReplay, RandomReplay
from assay.errors import InvalidInput


def _show(replay, *classes, replayed=(), first=0, samples=4):
    """Observe a task with so many samples of each class; sample numbers are 100 k + i."""
    indices = torch.cat([100 * k + first + torch.arange(samples) for k in classes])
    replay.observe(indices, indices // 100, replayed)


def test_only_rare_classes_that_were_seen_often_enough_are_replayed():
    """Counts over 20 tasks: 0 in 3, 1 in 2, 2 in 5, 3 in 17; with high 0.2 only 0 is rare and past the trigger of 3."""
    replay = FrequencyReplay(per_class=4, low=0.01, high=0.2, trigger=3)
    for k in [0] * 3 + [1] * 2:
        _show(replay, k)
    for _ in range(5):
        _show(replay, 2, 3)
    for _ in range(10):
        _show(replay, 3)
    assert replay.choose([4, 5]) == [0]  # class 2's frequency is 0.25
    assert replay.choose([0, 5]) == []
    replay.low = 0.15  # class 0's frequency, at which it is left alone
    assert replay.choose([4, 5]) == []


def test_the_rarest_come_first_and_no_more_than_the_task_has():
    """Another order, or more classes than the task's own."""
    replay = FrequencyReplay(per_class=4, high=1.0, trigger=1)
    for k, times in enumerate((4, 2, 3)):
        for _ in range(times):
            _show(replay, k)
    assert replay.choose([8, 9]) == [1, 2] and replay.choose([9]) == [1] and replay.choose([1, 8, 9]) == [2, 0]


def test_a_replayed_class_counts_as_shown():
    """A class is replayed for ever: its frequency must rise to `high` and end it."""
    replay = FrequencyReplay(per_class=4, low=0.0, high=0.5, trigger=1)
    _show(replay, 0)
    replayed = 0
    for _ in range(30):
        chosen = replay.choose([1])
        _show(replay, 1, replayed=chosen)
        replayed += len(chosen)
    assert replay.counts[0] == 1 + replayed and replay.counts[0] / replay.num_tasks == pytest.approx(0.5, abs=0.05)


def test_memory_holds_samples_of_the_class_and_renews_a_part():
    """Samples of another class, too many of them, or a renewal of another size than per_class / (seen + 1)."""
    replay = FrequencyReplay(per_class=12)
    _show(replay, 3, 5, samples=20)
    assert len(replay.samples([3])) == 12 and len(replay.samples([3, 5]).unique()) == 24
    for seen, renewed in [(1, 6), (2, 4), (3, 3)]:
        before = set(replay.samples([3]).tolist())
        _show(replay, 3, first=20 * seen, samples=20)
        now = set(replay.samples([3]).tolist())
        assert len(now) == 12 and len(now - before) == renewed and all(i // 100 == 3 for i in now)
        assert all(i % 100 >= 20 * seen for i in now - before)
    assert replay.samples([]).tolist() == []


def test_random_replay_draws_evenly_from_the_other_classes_seen():
    """A class of the task, an unseen one, or one more often than another."""
    replay = RandomReplay(per_class=2)
    assert replay.choose([0]) == []
    for k in range(4):
        _show(replay, k)
    draws = torch.tensor([k for _ in range(1500) for k in replay.choose([1])])
    counts = torch.bincount(draws, minlength=4)
    assert counts[1] == 0 and counts.sum() == 1500
    assert all(abs(int(counts[k]) - 500) < 80 for k in (0, 2, 3))
    assert sorted(replay.choose([1, 8, 9, 7])) == [0, 2, 3]


def test_no_global_generator_is_used():
    """Training's random numbers change when replay is added."""
    state = torch.random.get_rng_state()
    replay = RandomReplay(per_class=2)
    _show(replay, 0, 1)
    replay.choose([2, 3])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("options", [{"low": 0.2, "high": 0.1}, {"high": 1.5}, {"trigger": 0}, {"per_class": 0}])
def test_options_out_of_range_are_refused(options):
    """A rule that can replay nothing is made."""
    with pytest.raises(InvalidInput, match=r"expected|per_class"):
        FrequencyReplay(**options)


def test_targets_must_fit_the_indices():
    """Samples are remembered under the wrong class."""
    with pytest.raises(InvalidInput, match="one target per index"):
        FrequencyReplay().observe(torch.arange(3), torch.tensor([0]))
