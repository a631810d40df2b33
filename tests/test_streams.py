"""Named random streams."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.streams import Streams


@given(st.text(max_size=10), st.integers(0, 10**6), st.text(max_size=10))
@settings(max_examples=50)
def test_a_stream_depends_on_task_seed_and_name_only(task, seed, name):
    """Two arms with the same task and seed must draw the same numbers; another seed or name must not."""
    first, again = Streams(task, seed).torch(name), Streams(task, seed).torch(name)
    assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=again))
    assert Streams(task, seed).entropy(name) != Streams(task, seed + 1).entropy(name)
    assert Streams(task, seed).entropy(name) != Streams(task, seed).entropy(name + "x")


def test_streams_do_not_touch_the_global_generators():
    """Drawing from a stream must leave the user's own random state alone."""
    before = torch.get_rng_state()
    Streams("task", 0).torch("init")
    Streams("task", 0).numpy("init").normal()
    assert torch.equal(before, torch.get_rng_state())


def test_numpy_draws_look_uniform_over_seeds():
    """Neighbouring seeds must not give correlated draws: the mean of first draws is that of a uniform."""
    draws = [Streams("task", seed).numpy("data").random() for seed in range(2000)]
    assert abs(sum(draws) / len(draws) - 0.5) < 5 / (12 * len(draws)) ** 0.5
