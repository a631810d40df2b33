"""XOR clusters: the distribution they are drawn from."""

from __future__ import annotations

import math

import pytest
import torch

from assay.data.xor import xor_clusters
from assay.errors import InvalidInput


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_lie_about_both_ends_of_their_clean_classes_axis() -> None:
    """Classes would not be an XOR: along its own axis a sample is at +-mu, along the other at 0, with unit noise."""
    data = xor_clusters(features=30, mu=10.0, train=4000, generator=_seeded(1))
    assert torch.allclose(data.centers @ data.centers.T, 100 * torch.eye(2), atol=1e-3)
    along = data.train.inputs @ (data.centers / 10).T
    own = along.gather(1, data.clean[:, None])[:, 0]
    other = along.gather(1, 1 - data.clean[:, None])[:, 0]
    assert (own.abs() > 5).all()
    for side in (own > 0, own < 0):  # each of the two clusters has half the samples and unit variance
        assert side.double().mean().item() == pytest.approx(0.5, abs=0.04)
        assert own[side].abs().mean().item() == pytest.approx(10, abs=0.1)
        assert own[side].std().item() == pytest.approx(1, abs=0.05)
    assert other.mean().item() == pytest.approx(0, abs=0.06)
    assert other.std().item() == pytest.approx(1, abs=0.05)


def test_labels_are_flipped_in_training_only_at_the_given_rate() -> None:
    """The test set would carry label noise, or the training set another amount of it."""
    data = xor_clusters(features=20, mu=20.0, flip=0.2, train=5000, validation=500, test=500, generator=_seeded(2))
    assert (data.train.targets != data.clean).double().mean().item() == pytest.approx(0.2, abs=0.02)
    for split in (data.validation, data.test):
        nearest = (split.inputs @ data.centers.T).abs().argmax(dim=1)
        assert torch.equal(nearest, split.targets)
    assert torch.equal(xor_clusters(flip=0.0).clean, xor_clusters(flip=0.0).train.targets)


def test_no_linear_classifier_is_better_than_chance() -> None:
    """The task would not need features: least squares on many samples stays at one half."""
    data = xor_clusters(features=10, mu=5.0, flip=0.0, train=5000, test=5000, generator=_seeded(3))
    inputs = torch.cat([data.train.inputs, torch.ones(5000, 1)], dim=1)
    w = torch.linalg.lstsq(inputs, 2.0 * data.train.targets[:, None] - 1).solution[:, 0]
    chosen = (data.test.inputs @ w[:-1] + w[-1] > 0).long()
    # A half-space can have at most three of the four clusters on its right side, so a lucky bias gets 0.75; fitted, none.
    assert (chosen == data.test.targets).double().mean().item() == pytest.approx(0.5, abs=0.06)


def test_balanced_clusters_are_equally_many() -> None:
    """`balanced` would leave cluster sizes to chance."""
    data = xor_clusters(features=10, mu=20.0, balanced=True, train=402, generator=_seeded(4))
    along = data.train.inputs @ data.centers.T
    cluster = 2 * data.clean + (along.gather(1, data.clean[:, None])[:, 0] > 0)
    counts = torch.bincount(cluster, minlength=4)
    assert counts.max() - counts.min() <= 1
    assert data.clean.diff().any(), "samples come in random order"


def test_the_generator_decides_everything_and_the_global_one_nothing() -> None:
    """Paired seeds would not be paired."""
    before = torch.get_rng_state()
    first, again, other = (xor_clusters(features=5, generator=_seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.train.inputs, again.train.inputs) and torch.equal(first.train.targets, again.train.targets)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_on_a_device_keeps_what_is_known_of_the_clusters() -> None:
    """`to` would drop the centres and the clean labels."""
    data = xor_clusters(features=5)
    moved = data.to("cpu")
    assert torch.equal(moved.clean, data.clean) and torch.equal(moved.centers, data.centers)


@pytest.mark.parametrize("wrong", [{"features": 1}, {"mu": -1.0}, {"mu": math.nan}, {"flip": 1.1}, {"test": 0}])
def test_sizes_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    """A typing error would become a strange data set."""
    with pytest.raises(InvalidInput, match=r"expected|at least"):
        xor_clusters(**wrong)  # type: ignore[arg-type]
