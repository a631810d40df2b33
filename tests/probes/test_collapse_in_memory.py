import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from assay.errors import InvalidInput
from assay.probes.class_statistics import class_means
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


def test_test_data_are_measured_about_training_means():
    """Test values use the test data's own means, or NC1 is not relative to the training data's spread of means."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(4).repeat(30)
    means = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    train, test = (means[y] + 0.8 * torch.randn(120, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    own = class_means(train, y, 4)
    values = measure_collapse(test, y, num_classes=4, means=own)
    M, residual = own - own.mean(0), test - own[y]
    Sigma_W, Sigma_B = residual.T @ residual / 120, M.T @ M / 4
    expected = (Sigma_W @ torch.linalg.pinv(Sigma_B, rtol=1e-9, hermitian=True)).trace() / 4
    assert values["nc1"] == pytest.approx(expected.item(), rel=1e-9)
    assert values["nc1_trace"] == pytest.approx((Sigma_W.trace() / Sigma_B.trace()).item(), rel=1e-9)
    assert values["ncc_accuracy"] == (torch.cdist(test, own).argmin(dim=1) == y).double().mean().item()
    assert 0.5 < values["ncc_accuracy"] < 1, "the case decides nothing"
    with pytest.raises(InvalidInput, match="means must be"):
        measure_collapse(test, y, num_classes=4, means=own[:3])
    with pytest.raises(InvalidInput, match="use centre='class'"):
        measure_collapse(test, y, num_classes=4, means=own, centre="sample")


@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])
def test_nearest_means_are_found_near_and_far_from_collapse(spread):
    """The shortcut for samples that are surely nearest to their own mean decides wrongly."""
    generator = torch.Generator().manual_seed(4)
    y = torch.arange(5).repeat(60)
    features = torch.randn(5, 6, generator=generator)[y] + spread * torch.randn(300, 6, generator=generator)
    scores = torch.randn(300, 5, generator=generator)
    values, means = measure_collapse(features, y, scores=scores), class_means(features, y, 5)
    nearest = torch.cdist(features.double(), means).argmin(dim=1)
    assert values["ncc_accuracy"] == pytest.approx((nearest == y).double().mean().item(), abs=1e-9)
    assert values["nc4"] == pytest.approx((nearest != scores.argmax(dim=1)).double().mean().item(), abs=1e-9)


def test_float32_keeps_digits_where_means_span_few_directions_strongly():
    """One pair of means a thousand times closer than the others costs NC1 its digits in float32."""
    generator = torch.Generator().manual_seed(5)
    means, y = torch.randn(5, 8, generator=generator, dtype=torch.float64), torch.arange(5).repeat(40)
    means[1] = means[0] + 1e-3 * torch.randn(8, generator=generator, dtype=torch.float64)
    features = (means[y] + 1e-4 * torch.randn(200, 8, generator=generator, dtype=torch.float64)).float()
    expected = measure_collapse(features.double(), y, num_classes=5)
    values = measure_collapse(features, y, num_classes=5)
    for key in ("nc1", "nc1_trace", "nc1_cdnv"):
        assert values[key] == pytest.approx(expected[key], rel=1e-4), key
