"""MNIST and CIFAR-10 as float32 tensors (N, C, H, W), standardised per channel with the training split's statistics.

LeCun, Cortes, Burges, "The MNIST database of handwritten digits"; Krizhevsky, "Learning multiple layers of features
from tiny images", 2009.

Besides the official archive, CIFAR-10 is read from `cifar10/subset.npz`: uint8 arrays train_images and test_images
(N, 32, 32, 3), train_labels and test_labels (N,). Decoded files are kept in the process: trials that one worker runs
one after another read them once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.data._formats import read_cifar_archive, read_cifar_subset, read_idx
from assay.data.dataset import Dataset, split_dataset
from assay.data.files import locate, obtain
from assay.errors import InvalidInput

__all__ = ["cifar10", "mnist"]

# (train images, train labels, test images, test labels); the first two are the last two where all splits share a pool
_Arrays = tuple[Tensor, Tensor, Tensor, Tensor]
_IDX_KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")


def mnist(
    *,
    train: int = 8000,
    validation: int = 1000,
    test: int = 1000,
    pool: int = 1,
    generator: torch.Generator | None = None,
) -> Dataset:
    """Handwritten digits, 10 classes.

    With only the official test files (`t10k-*`, 10,000 images) in place, all three splits are drawn from them. With
    the training files there too (`assay data mnist` fetches them), train and validation come from the 60,000 training
    images and test from the 10,000. Splits are stratified and disjoint.

    Args:
        train: Images for training.
        validation: Images for validation.
        test: Images for testing.
        pool: Side of the squares of pixels that are averaged; divides 28. 1 keeps 28 x 28, 2 gives 14 x 14.
        generator: Decides the split; None is a fixed one.

    Returns:
        Inputs (N, 1, 28 / pool, 28 / pool), labels (N,).

    Raises:
        InvalidInput: If `pool` does not divide 28, a size is below 1, or there are fewer images than asked for.
        MissingData: If the files are nowhere and cannot be downloaded.
    """
    return _dataset("mnist", _mnist_arrays(), (train, validation, test), pool, generator)


def cifar10(
    *,
    train: int = 8000,
    validation: int = 2000,
    test: int = 2000,
    pool: int = 1,
    generator: torch.Generator | None = None,
) -> Dataset:
    """Photographs, 10 classes: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.

    Train and validation are drawn from the training images, test from the test images; from the official archive
    (50,000 and 10,000) if it is in place, else from `cifar10/subset.npz`, else the archive is downloaded. Splits are
    stratified and disjoint.

    Args:
        train: Images for training.
        validation: Images for validation.
        test: Images for testing.
        pool: Side of the squares of pixels that are averaged; divides 32.
        generator: Decides the split; None is a fixed one.

    Returns:
        Inputs (N, 3, 32 / pool, 32 / pool), labels (N,).

    Raises:
        InvalidInput: If `pool` does not divide 32, a size is below 1, or there are fewer images than asked for.
        MissingData: If the files are nowhere and cannot be downloaded.
    """
    return _dataset("cifar10", _cifar_arrays(), (train, validation, test), pool, generator)


def _mnist_arrays() -> _Arrays:
    images, labels = (read_idx(obtain("mnist", f"mnist/t10k-{kind}.gz")) for kind in _IDX_KINDS)
    found = locate("mnist")
    training = [found[f"mnist/train-{kind}.gz"] for kind in _IDX_KINDS]
    train_images, train_labels = (read_idx(path) for path in training if path) if all(training) else (images, labels)
    return train_images[:, None], train_labels, images[:, None], labels


def _cifar_arrays() -> _Arrays:
    archive, subset = "cifar10/cifar-10-binary.tar.gz", "cifar10/subset.npz"
    found = locate("cifar10")
    if found[archive] is None and found[subset] is not None:
        return read_cifar_subset(found[subset])
    return read_cifar_archive(obtain("cifar10", archive))


def _dataset(
    name: str, arrays: _Arrays, sizes: tuple[int, int, int], pool: int, generator: torch.Generator | None
) -> Dataset:
    train_images, train_labels, test_images, test_labels = arrays
    side = train_images.shape[-1]
    if pool < 1 or side % pool:
        raise InvalidInput(f"{name}: pool must divide {side}, got {pool}")
    return split_dataset(
        name,
        train_images,
        train_labels.long(),
        sizes,
        num_classes=10,
        generator=generator,
        separate_test=None if train_labels is test_labels else (test_images, test_labels.long()),
        transform=lambda images: F.avg_pool2d(images.div_(255), pool),
    )
