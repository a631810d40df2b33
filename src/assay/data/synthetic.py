"""Synthetic data with known structure: Gaussian blobs."""

from __future__ import annotations

import torch

from assay.data.dataset import Dataset, split_dataset
from assay.errors import InvalidInput

__all__ = ["blobs"]


def blobs(
    *,
    classes: int = 3,
    features: int = 2,
    separation: float = 4.0,
    train: int = 300,
    validation: int = 150,
    test: int = 150,
    generator: torch.Generator | None = None,
) -> Dataset:
    """Isotropic Gaussian clusters of unit variance around random centres, as many samples of each class.

    Args:
        classes: Number of clusters, at least 2.
        features: Dimension d of a sample, at least 1.
        separation: Standard deviation of the centres per dimension, in units of a cluster's own; at 0 all overlap.
        train: Samples for training.
        validation: Samples for validation.
        test: Samples for testing.
        generator: Draws centres, samples and split; None is a fixed draw.

    Returns:
        Inputs (N, d), labels (N,); inputs are standardised with the training split's statistics.

    Raises:
        InvalidInput: If a number is below its minimum.

    Example:
        >>> blobs(classes=4).outputs
        4
    """
    if classes < 2 or features < 1 or separation < 0:
        raise InvalidInput(
            f"blobs need classes >= 2, features >= 1, separation >= 0; got {classes}, {features}, {separation}"
        )
    generator = generator or torch.Generator().manual_seed(0)
    total = train + validation + test
    centres = separation * torch.randn(classes, features, generator=generator)
    labels = torch.arange(max(total, 0)) % classes
    inputs = centres[labels] + torch.randn(len(labels), features, generator=generator)
    return split_dataset("blobs", inputs, labels, (train, validation, test), num_classes=classes, generator=generator)
