"""Gaussian blobs: counts, shape of the clusters, and what separation does."""

from __future__ import annotations

import pytest
import torch

from assay.data.synthetic import blobs
from assay.errors import InvalidInput


def _nearest_centre_accuracy(separation: float) -> float:
    data = blobs(classes=4, features=5, separation=separation, train=4000, test=2000)
    centres = torch.stack([data.train.inputs[data.train.targets == label].mean(0) for label in range(4)])
    nearest = torch.cdist(data.test.inputs, centres).argmin(1)
    return float((nearest == data.test.targets).float().mean())


def test_separation_runs_from_chance_to_perfect() -> None:
    """The knob would not control the difficulty."""
    assert abs(_nearest_centre_accuracy(0.0) - 0.25) < 0.04
    assert _nearest_centre_accuracy(50.0) == 1.0


def test_clusters_are_isotropic_with_equal_variance() -> None:
    """Clusters would differ in spread, and the best classifier would not be linear."""
    data = blobs(classes=3, features=2, separation=0.0, train=9000, validation=3, test=3)
    spreads = torch.stack([data.train.inputs[data.train.targets == label].std(0) for label in range(3)])
    torch.testing.assert_close(spreads, torch.ones(3, 2), atol=0.05, rtol=0)


def test_classes_are_balanced_and_the_draw_is_the_generators() -> None:
    """Accuracy would reward the largest class; arms would not be paired."""
    first, again, other = (blobs(classes=5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.bincount(first.train.targets).tolist() == [60] * 5
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.inputs, other.train.inputs)


@pytest.mark.parametrize("arguments", [{"classes": 1}, {"features": 0}, {"separation": -1.0}, {"train": 0}])
def test_bad_arguments_are_refused(arguments: dict[str, float]) -> None:
    """Torch's own error would come from deep inside."""
    with pytest.raises(InvalidInput):
        blobs(**arguments)  # type: ignore[arg-type]
