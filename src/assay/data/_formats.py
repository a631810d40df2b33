"""Readers of the publishers' image formats: IDX (MNIST), CIFAR-10's binary batches, and an npz subset of CIFAR-10.

No pickle is opened. Arrays come back as uint8 tensors: images (N, C, H, W), labels (N,).
"""

from __future__ import annotations

import gzip
import math
import struct
import tarfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from assay.errors import MissingData

_UNSIGNED_BYTE = 0x08
_CIFAR_RECORD = 1 + 3 * 32 * 32


@cache
def read_idx(path: Path) -> Tensor:
    """Read a gzipped IDX file of unsigned bytes: magic (0, 0, type, rank), big-endian sizes, then the bytes.

    Raises:
        MissingData: If the file is damaged or holds something else.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise MissingData(f"{path} is damaged ({error}); replace it by the publisher's file") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise MissingData(f"{path} is no IDX file of unsigned bytes; replace it by the publisher's file")
    rank = content[3]
    start = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", content[4:start]) if len(content) >= start else ()
    if len(content) - start != math.prod(shape):
        raise MissingData(f"{path} is cut short or too long for its shape {shape}; replace it by the publisher's file")
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(shape)


@cache
def read_cifar_archive(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read `cifar-10-binary.tar.gz`: train images, train labels, test images, test labels.

    Each record is one byte of label and 3,072 bytes of pixels, channel by channel.

    Raises:
        MissingData: If the archive is damaged or incomplete.
    """
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    try:
        with tarfile.open(path) as archive:
            records = [_cifar_records(archive, f"cifar-10-batches-bin/{name}.bin") for name in names]
    except (OSError, EOFError, KeyError, ValueError, zlib.error, tarfile.TarError) as error:
        raise MissingData(f"{path} is damaged ({error}); replace it by the publisher's file") from error
    train, test = torch.cat(records[:5]), records[5]
    return _pixels(train), train[:, 0], _pixels(test), test[:, 0]


def _cifar_records(archive: tarfile.TarFile, name: str) -> Tensor:
    member = archive.extractfile(name)
    if member is None:
        raise KeyError(f"{name} is no file")
    return torch.frombuffer(bytearray(member.read()), dtype=torch.uint8).reshape(-1, _CIFAR_RECORD)


def _pixels(records: Tensor) -> Tensor:
    return records[:, 1:].reshape(-1, 3, 32, 32)


@cache
def read_cifar_subset(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read an npz with uint8 arrays train_images, train_labels, test_images, test_labels (images NHWC).

    Raises:
        MissingData: If the file is damaged or an array is missing.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = [torch.from_numpy(arrays[f"{part}_images"]).permute(0, 3, 1, 2) for part in ("train", "test")]
            labels = [torch.from_numpy(arrays[f"{part}_labels"]) for part in ("train", "test")]
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise MissingData(f"{path} is no subset of CIFAR-10 ({error}); see its layout in assay.data.images") from error
    return images[0], labels[0], images[1], labels[1]
