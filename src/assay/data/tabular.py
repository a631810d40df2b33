"""The small real data sets that ship with scikit-learn: no download, always there.

`digits`: 1,797 images of 8 x 8 pixels, 10 classes. `breast_cancer`: 569 x 30, 2 classes. `wine`: 178 x 13, 3 classes.
`diabetes`: 442 x 10, regression. Splits are stratified and drawn by the generator; inputs (and the target of a
regression) are standardised with the training split's statistics.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from assay.data.dataset import Dataset, split_dataset

__all__ = ["breast_cancer", "diabetes", "digits", "wine"]


@cache
def _load(name: str) -> tuple[Tensor, Tensor]:
    """Return scikit-learn's arrays of a data set as float32 (N, d) inputs and their targets."""
    from sklearn import datasets

    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    return torch.from_numpy(inputs).float(), torch.from_numpy(targets)


def digits(
    *, train: int = 1000, validation: int = 297, test: int = 500, generator: torch.Generator | None = None
) -> Dataset:
    """Handwritten digits of 8 x 8 pixels (UCI): inputs (N, 1, 8, 8), 10 classes, 1,797 samples.

    Args:
        train: Samples for training.
        validation: Samples for validation.
        test: Samples for testing.
        generator: Decides the split; None is a fixed one.

    Raises:
        InvalidInput: If a size is below 1 or the sizes exceed 1,797 together.

    Example:
        >>> digits().input_shape, digits().outputs
        ((1, 8, 8), 10)
    """
    inputs, targets = _load("digits")
    sizes = (train, validation, test)
    return split_dataset("digits", inputs.view(-1, 1, 8, 8), targets, sizes, num_classes=10, generator=generator)


def breast_cancer(
    *, train: int = 369, validation: int = 100, test: int = 100, generator: torch.Generator | None = None
) -> Dataset:
    """Breast cancer Wisconsin (diagnostic): inputs (N, 30), 2 classes, 569 samples.

    Args:
        train: Samples for training.
        validation: Samples for validation.
        test: Samples for testing.
        generator: Decides the split; None is a fixed one.

    Raises:
        InvalidInput: If a size is below 1 or the sizes exceed 569 together.
    """
    sizes = (train, validation, test)
    return split_dataset("breast-cancer", *_load("breast_cancer"), sizes, num_classes=2, generator=generator)


def wine(
    *, train: int = 106, validation: int = 36, test: int = 36, generator: torch.Generator | None = None
) -> Dataset:
    """Wine recognition: inputs (N, 13), 3 cultivars, 178 samples.

    Args:
        train: Samples for training.
        validation: Samples for validation.
        test: Samples for testing.
        generator: Decides the split; None is a fixed one.

    Raises:
        InvalidInput: If a size is below 1 or the sizes exceed 178 together.
    """
    sizes = (train, validation, test)
    return split_dataset("wine", *_load("wine"), sizes, num_classes=3, generator=generator)


def diabetes(
    *, train: int = 282, validation: int = 80, test: int = 80, generator: torch.Generator | None = None
) -> Dataset:
    """Diabetes progression after one year: inputs (N, 10), targets (N, 1), a regression on 442 samples.

    Targets have mean 0 and deviation 1 in the training split, so a mean squared error of 1 is the constant predictor.

    Args:
        train: Samples for training.
        validation: Samples for validation.
        test: Samples for testing.
        generator: Decides the split; None is a fixed one.

    Raises:
        InvalidInput: If a size is below 1 or the sizes exceed 442 together.
    """
    inputs, targets = _load("diabetes")
    sizes = (train, validation, test)
    return split_dataset("diabetes", inputs, targets[:, None], sizes, num_classes=None, generator=generator)
