"""scikit-learn's data sets against scikit-learn's own arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn import datasets

from assay.data.dataset import Dataset
from assay.data.tabular import breast_cancer, diabetes, digits, wine
from assay.errors import InvalidInput

LOADERS: list[tuple[Callable[..., Dataset], Callable[..., tuple[np.ndarray, np.ndarray]]]] = [
    (digits, datasets.load_digits),
    (breast_cancer, datasets.load_breast_cancer),
    (wine, datasets.load_wine),
    (diabetes, datasets.load_diabetes),
]


def _sorted_rows(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rescale every column to 0..1 and sort the rows, so that neither scale nor order matters."""
    table = np.concatenate([inputs.reshape(len(inputs), -1), targets.reshape(len(targets), -1)], axis=1).astype(float)
    low, high = table.min(0), table.max(0)
    table = (table - low) / np.where(high > low, high - low, 1)
    return table[np.lexsort(np.round(table, 4).T)]


@pytest.mark.parametrize(("load", "reference"), LOADERS)
def test_splits_hold_the_reference_samples_each_once(
    load: Callable[..., Dataset], reference: Callable[..., tuple[np.ndarray, np.ndarray]]
) -> None:
    """A sample could be lost, doubled, or paired with another's target."""
    dataset = load()
    splits = (dataset.train, dataset.validation, dataset.test)
    inputs = torch.cat([split.inputs for split in splits]).numpy()
    targets = torch.cat([split.targets for split in splits]).numpy()
    expected_inputs, expected_targets = reference(return_X_y=True)
    assert len(inputs) == len(expected_inputs)
    np.testing.assert_allclose(
        _sorted_rows(inputs, targets), _sorted_rows(expected_inputs, expected_targets), atol=2e-4
    )


@pytest.mark.parametrize("load", [digits, breast_cancer, wine])
def test_class_proportions_are_those_of_the_whole(load: Callable[..., Dataset]) -> None:
    """Accuracy on an unbalanced test split would mean something else."""
    dataset = load()
    splits = (dataset.train, dataset.validation, dataset.test)
    assert dataset.num_classes is not None
    counts = torch.stack([torch.bincount(split.targets, minlength=dataset.num_classes) for split in splits]).double()
    expected = counts.sum(0) * counts.sum(1, keepdim=True) / counts.sum()
    assert (counts - expected).abs().max() < 2


def test_digits_are_images_of_one_channel() -> None:
    """Convolutional models could not read them; a permuted axis would scramble the pixels."""
    images = digits(train=1797 - 2, validation=1, test=1).train.inputs
    raw = datasets.load_digits().images
    assert images.shape == (1795, 1, 8, 8) and images.dtype == torch.float32
    np.testing.assert_allclose(np.corrcoef(images.mean(0)[0].flatten(), raw.mean(0).flatten())[0, 1], 1, atol=1e-4)


def test_regression_targets_are_columns_with_unit_deviation() -> None:
    """Targets of shape (N,) against outputs of shape (N, 1) would broadcast to (N, N) in a squared error."""
    dataset = diabetes()
    assert dataset.num_classes is None and dataset.outputs == 1 and dataset.train.targets.shape == (282, 1)
    assert dataset.train.targets.dtype == torch.float32
    torch.testing.assert_close(dataset.train.targets.std(correction=0), torch.tensor(1.0))


def test_generator_decides_the_split_and_none_is_fixed() -> None:
    """Two runs of a study would see different data."""
    assert torch.equal(digits().train.inputs, digits().train.inputs)
    seeded = [digits(generator=torch.Generator().manual_seed(seed)).train.targets for seed in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])


@pytest.mark.parametrize("sizes", [{"train": 2000}, {"train": 0}, {"test": -1}])
def test_impossible_sizes_are_refused(sizes: dict[str, int]) -> None:
    """A smaller split than asked for would go unnoticed."""
    with pytest.raises(InvalidInput, match="sample"):
        digits(**sizes)
