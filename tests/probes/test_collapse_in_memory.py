import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from assay.errors import InvalidInput
from assay.probes.collapse_in_memory import measure_collapse


def test_extra_memory_stays_below_a_twentieth_of_the_features():
    """Something of the size of the features, or d x d, is allocated."""
    features, targets = torch.randn(10_000, 512), torch.arange(10_000) % 100
    head = nn.Linear(512, 100)
    measure_collapse(features[:500], targets[:500], head=head)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        measure_collapse(features, targets, head=head)
    current = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    assert 0 < peak < 0.05 * features.nbytes


def test_scores_of_the_network_decide_nc4():
    """NC4 compares with the head's decision although the network's was given."""
    features, targets = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    scores = torch.eye(3).repeat(4, 1)
    scores[0] = torch.tensor([0.0, 1.0, 0.0])
    assert measure_collapse(features, targets, scores=scores)["nc4"] == pytest.approx(1 / 12)


def test_hooks_on_the_head_do_not_run():
    """Measuring triggers the user's own instrumentation."""
    head, calls = nn.Linear(3, 3), []
    head.register_forward_hook(lambda *_: calls.append(1))
    measure_collapse(torch.eye(3), torch.arange(3), head=head)
    assert not calls


def test_scores_and_head_must_fit():
    """Scores of another data set are compared row by row."""
    with pytest.raises(InvalidInput, match="scores must be"):
        measure_collapse(torch.eye(3), torch.arange(3), scores=torch.eye(4))
    with pytest.raises(InvalidInput, match="reads 5 features"):
        measure_collapse(torch.eye(3), torch.arange(3), head=nn.Linear(5, 3))
