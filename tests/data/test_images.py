"""MNIST and CIFAR-10 against parsers and writers of the formats that are written out here."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from assay.data.images import cifar10, mnist
from assay.errors import InvalidInput, MissingData

IMAGES, LABELS = "images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"


def _write_mnist(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIII", 0x803, *images.shape)
    (folder / f"{part}-{IMAGES}").write_bytes(gzip.compress(header + images.tobytes()))
    (folder / f"{part}-{LABELS}").write_bytes(gzip.compress(struct.pack(">II", 0x801, len(labels)) + labels.tobytes()))


def _random_images(count: int, shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images whose first pixel tells their number, so that they can be recognised after standardisation."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, (np.arange(count) % 10).astype(np.uint8)


def _recover(standardised: torch.Tensor) -> np.ndarray:
    """Undo an unknown affine map per channel, given that 0 and 255 both occur."""
    low, high = standardised.amin((0, 2, 3), keepdim=True), standardised.amax((0, 2, 3), keepdim=True)
    return ((standardised - low) / (high - low) * 255).round().to(torch.uint8).numpy()


def _as_set(images: np.ndarray, labels: np.ndarray) -> set[tuple[bytes, int]]:
    pairs = zip(np.ascontiguousarray(images).reshape(len(images), -1), labels, strict=True)
    return {(image.tobytes(), int(label)) for image, label in pairs}


def test_mnist_test_files_alone_serve_all_splits(folders) -> None:
    """Images could be lost, doubled across splits, or paired with another's label."""
    images, labels = _random_images(100, (28, 28))
    _write_mnist(folders.given / "mnist", "t10k", images, labels)
    data = mnist(train=60, validation=20, test=20)
    splits = (data.train, data.validation, data.test)
    recovered = _recover(torch.cat([split.inputs for split in splits]))
    assert recovered.shape == (100, 1, 28, 28)
    assert _as_set(recovered, np.concatenate([split.targets for split in splits])) == _as_set(images, labels)
    assert [torch.bincount(split.targets).tolist() for split in splits] == [[6] * 10, [2] * 10, [2] * 10]


def test_mnist_training_files_are_used_when_there(folders) -> None:
    """The official test images would be trained on although the training images are there."""
    dark, labels = np.zeros((50, 28, 28), np.uint8), (np.arange(50) % 10).astype(np.uint8)
    dark[:, 0, 0] = 1
    _write_mnist(folders.given / "mnist", "train", dark, labels)
    _write_mnist(folders.cache / "mnist", "t10k", dark + 100, labels)
    data = mnist(train=30, validation=20, test=50)
    assert data.train.inputs.max() == data.validation.inputs.max() < data.test.inputs.min()


@pytest.mark.parametrize("pool", [2, 4, 7])
def test_pool_averages_squares_of_pixels(folders, pool: int) -> None:
    """Pooling would subsample or mix rows and columns."""
    images, labels = _random_images(40, (28, 28))
    _write_mnist(folders.given / "mnist", "t10k", images, labels)
    pooled = mnist(train=20, validation=10, test=10, pool=pool).train.inputs
    whole = mnist(train=20, validation=10, test=10).train.inputs
    side = 28 // pool
    squares = whole.view(20, 1, side, pool, side, pool).mean((3, 5))
    expected = (squares - squares.mean()) / squares.std(correction=0)
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arguments", [{"pool": 3}, {"pool": 0}, {"train": 35}, {"test": 0}, {"validation": -1}])
def test_bad_arguments_are_refused(folders, arguments: dict[str, int]) -> None:
    """Torch's own error would come from deep inside."""
    _write_mnist(folders.given / "mnist", "t10k", *_random_images(40, (28, 28)))
    with pytest.raises(InvalidInput):
        mnist(**{"train": 20, "validation": 10, "test": 10, **arguments})


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b"ab"), gzip.compress(struct.pack(">II", 0x801, 5) + b"abc"), gzip.compress(b"x" * 99)],
    ids=["not gzip", "too short", "no images", "no header"],
)
def test_damaged_file_is_one_clear_error(folders, content: bytes) -> None:
    """A damaged file would end in a traceback of struct or zlib."""
    _write_mnist(folders.given / "mnist", "t10k", *_random_images(10, (28, 28)))
    path = folders.given / "mnist" / f"t10k-{IMAGES}"
    path.write_bytes(content)
    with pytest.raises(MissingData, match=r"t10k-images.*publisher's file"):
        mnist()


def test_missing_files_say_what_to_put_where(folders) -> None:
    """The user would not know which of the files is meant."""
    with pytest.raises(MissingData, match=r"mnist/t10k-images-idx3-ubyte\.gz.*no network"):
        mnist()
    with pytest.raises(MissingData, match=r"cifar-10-binary\.tar\.gz.*no network"):
        cifar10()


def _write_subset(path: Path, count: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    path.parent.mkdir(parents=True, exist_ok=True)
    train, test = _random_images(count, (32, 32, 3), seed), _random_images(count, (32, 32, 3), seed + 1)
    arrays = {"train_images": train[0], "train_labels": train[1], "test_images": test[0], "test_labels": test[1]}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return arrays


def test_cifar_subset_keeps_channels_and_pools_apart(folders) -> None:
    """Height, width and channel could be swapped, or test images trained on."""
    arrays = _write_subset(folders.given / "cifar10" / "subset.npz")
    data = cifar10(train=30, validation=10, test=40)
    splits = (data.train, data.validation)
    recovered = _recover(torch.cat([split.inputs for split in splits])).transpose(0, 2, 3, 1)
    targets = np.concatenate([split.targets for split in splits])
    assert _as_set(recovered, targets) == _as_set(arrays["train_images"], arrays["train_labels"])
    recovered = _recover(data.test.inputs).transpose(0, 2, 3, 1)
    assert _as_set(recovered, data.test.targets.numpy()) == _as_set(arrays["test_images"], arrays["test_labels"])


def test_cifar_archive_comes_before_the_subset(folders) -> None:
    """The full set would be ignored, or its records read in the wrong order."""
    _write_subset(folders.given / "cifar10" / "subset.npz", seed=5)
    images, labels = _random_images(60, (3, 32, 32))
    records = np.concatenate([labels[:, None], images.reshape(60, -1)], axis=1)
    with tarfile.open(folders.given / "cifar10" / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            content = records[10 * number : 10 * number + 10].tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    data = cifar10(train=40, validation=10, test=10)
    recovered = _recover(torch.cat([data.train.inputs, data.validation.inputs]))
    assert _as_set(recovered, torch.cat([data.train.targets, data.validation.targets]).numpy()) == _as_set(
        images[:50], labels[:50]
    )
    assert _as_set(_recover(data.test.inputs), data.test.targets.numpy()) == _as_set(images[50:], labels[50:])


def test_cifar_damaged_files_are_one_clear_error(folders) -> None:
    """A damaged archive would end in a traceback; an npz with objects would run code."""
    folder = folders.given / "cifar10"
    folder.mkdir(parents=True)
    np.savez(folder / "subset.npz", train_images=np.array([{}], dtype=object))
    with pytest.raises(MissingData, match="no subset of CIFAR-10"):
        cifar10()
    (folder / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(MissingData, match="damaged"):
        cifar10()


def test_real_mnist_matches_an_independent_parse(real_data: Path) -> None:
    """The reader would shift or transpose real images."""
    raw = gzip.decompress((real_data / "mnist" / f"t10k-{IMAGES}").read_bytes())
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(10_000, 1, 28, 28)
    labels = np.frombuffer(gzip.decompress((real_data / "mnist" / f"t10k-{LABELS}").read_bytes()), np.uint8, offset=8)
    if (real_data / "mnist" / f"train-{IMAGES}").exists():
        pytest.skip("with the training files in place the splits come from them")
    data = mnist()
    splits = (data.train, data.validation, data.test)
    recovered = _recover(torch.cat([split.inputs for split in splits]))
    assert _as_set(recovered, np.concatenate([split.targets for split in splits])) == _as_set(images, labels)


def test_real_cifar_subset_is_balanced(real_data: Path) -> None:
    """Stratification would fail on the real file."""
    if not (real_data / "cifar10" / "subset.npz").exists():
        pytest.skip("needs cifar10/subset.npz")
    data = cifar10(train=500, validation=100, test=200)
    assert torch.bincount(data.train.targets).tolist() == [50] * 10
    assert torch.bincount(data.test.targets).tolist() == [20] * 10
