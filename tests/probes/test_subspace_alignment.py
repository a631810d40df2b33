"""Overlaps against torch's SVD, planted directions and rank-one updates."""

import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.probes.subspace_alignment import SubspaceAlignment, direction_alignment, overlaps
from assay.probes.view import View


def matrix(h, d, seed):
    """Gaussian entries in float64."""
    return torch.randn(h, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(weight):
    """A linear layer with a given weight, as the model."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
    linear.weight.data = weight.clone()
    return linear


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_overlaps_equal_the_svds(shape):
    """A side, the order or the square is wrong."""
    W, M = matrix(*shape, 0), matrix(*shape, 1)
    (U, _, Vh), (P, _, Qh) = (torch.linalg.svd(m, full_matrices=False) for m in (W, M))
    left, right = overlaps(W, M)
    assert torch.allclose(left, (U.T @ P).square(), atol=1e-9)
    assert torch.allclose(right, (Vh @ Qh.T).square(), atol=1e-9)
    assert torch.allclose(overlaps(W, M, 3)[1], right[:3, :3])
    assert torch.allclose(overlaps(W, W)[0], torch.eye(8, dtype=torch.float64), atol=1e-9)


def test_follows_updates_between_measurements():
    """The update is not the change since the last measurement, or the wrong weight is compared with it."""
    W, M = matrix(10, 6, 0), matrix(10, 6, 1)
    model, probe = layer(W), SubspaceAlignment(rank=2)
    first = probe.measure(View(model))
    assert (
        all(math.isnan(v) for v in first.values()) and "no earlier" in probe.skipped["update_overlap_left_after/model"]
    )
    model.weight.data += M
    values = probe.measure(View(model))
    for when, weight in (("before", W), ("after", W + M)):
        for side, table in zip(("left", "right"), overlaps(weight, M, 2), strict=True):
            assert values[f"update_overlap_{side}_{when}/model"] == pytest.approx(table.sum().item() / 2, rel=1e-6)
    assert torch.allclose(probe.overlaps["model"][0], overlaps(W, M, 2)[0])
    assert not probe.skipped
    again = probe.measure(View(model))  # nothing moved since
    assert all(math.isnan(v) for v in again.values()) and "less than 2" in next(iter(probe.skipped.values()))


def test_a_planted_spike_points_along_the_direction():
    """The alignment is with the wrong side's vector, or depends on the direction's length or sign."""
    beta = nn.functional.normalize(torch.arange(1.0, 7.0).double(), dim=0)
    W = matrix(10, 6, 0) + 1000 * torch.outer(torch.ones(10, dtype=torch.float64), beta)
    probe = SubspaceAlignment({"model": -7 * beta.float()})
    assert probe.measure(View(layer(W)))["direction_alignment/model"] == pytest.approx(1.0, abs=1e-4)
    assert direction_alignment(torch.eye(4)[0].double(), torch.eye(4)[1]) == 0


def test_independent_spans_overlap_by_chance_only():
    """The mean of independent spans is not k / n."""
    found = []
    for seed in range(40):
        left, right = overlaps(matrix(40, 20, seed), matrix(40, 20, seed + 1000), 4)
        found.append((left.sum() / 4, right.sum() / 4))
    assert torch.tensor(found).mean(dim=0).tolist() == pytest.approx([4 / 40, 4 / 20], rel=0.15)


def test_refuses_what_does_not_fit():
    """A direction of the wrong size, zero or NaN, an unknown layer or a bad rank give a number."""
    view = View(layer(matrix(5, 4, 0)))
    for direction in (torch.ones(5), torch.zeros(4), torch.full((4,), math.nan)):
        with pytest.raises(InvalidInput, match="direction must be 4"):
            SubspaceAlignment({"model": direction}).measure(view)
    with pytest.raises(InvalidInput, match="no weight matrix"):
        SubspaceAlignment({"hidden": torch.ones(4)}).measure(view)
    with pytest.raises(InvalidInput, match="rank"):
        SubspaceAlignment(rank=0)
    with pytest.raises(InvalidInput, match="one shape"):
        overlaps(torch.ones(2, 3), torch.ones(3, 2))
    view.model.weight.data[0, 0] = math.inf
    with pytest.raises(InvalidInput, match="infinite"):
        SubspaceAlignment().measure(view)
