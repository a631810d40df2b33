"""The table of data sets: which files each needs, where their publishers keep them, and their SHA-256 checksums.

Checksums are of the publishers' files and are checked after a download. A file that a user put in place is taken as it
is (a repacked archive has other bytes), except pickles, which are checked before they are opened.
"""

from __future__ import annotations

from dataclasses import dataclass

_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist"
_PLANETOID = "https://raw.githubusercontent.com/kimiyoung/planetoid/af6abf468a772cc055bec88c52e4d6f51b7c37e3/data"


@dataclass(frozen=True)
class DataFile:
    """A file below `ASSAY_DATA` or the cache.

    Args:
        path: Where it lies, relative, with slashes.
        url: Where its publisher keeps it; None if it cannot be downloaded.
        sha256: Checksum of the publisher's file; None if it cannot be downloaded.
    """

    path: str
    url: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """A data set and where it comes from.

    Args:
        name: Its name on the command line.
        description: What it is, in a few words.
        origin: The package or publisher that it comes from.
        files: Its files; none if it ships with a package.
        sufficient: Sets of files, each enough to load the data set.
    """

    name: str
    description: str
    origin: str
    files: tuple[DataFile, ...] = ()
    sufficient: tuple[tuple[str, ...], ...] = ((),)


def _mnist() -> Source:
    checksums = {
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    }
    files = tuple(DataFile(f"mnist/{name}", f"{_MNIST}/{name}", checksum) for name, checksum in checksums.items())
    test_files = tuple(file.path for file in files[:2])
    return Source("mnist", "handwritten digits, 28 x 28, 10 classes", "Y. LeCun, C. Cortes", files, (test_files,))


def _cifar10() -> Source:
    archive = DataFile(
        "cifar10/cifar-10-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    )
    subset = DataFile("cifar10/subset.npz")
    sufficient = ((archive.path,), (subset.path,))
    return Source("cifar10", "photographs, 32 x 32, 10 classes", "A. Krizhevsky", (archive, subset), sufficient)


def _planetoid(name: str, description: str, checksums: dict[str, str]) -> Source:
    files = tuple(
        DataFile(
            f"planetoid/{name}/raw/ind.{name.lower()}.{ending}",
            f"{_PLANETOID}/ind.{name.lower()}.{ending}",
            checksum,
        )
        for ending, checksum in checksums.items()
    )
    return Source(name.lower(), description, "Z. Yang et al.", files, (tuple(file.path for file in files),))


_SHAKESPEARE = DataFile(
    "tinyshakespeare/input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
_CORA = {
    "x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
}
_CITESEER = {
    "x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
    "tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
    "allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
    "y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
    "ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
    "ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
    "graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
    "test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
}

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("digits", "handwritten digits, 8 x 8, 10 classes", "scikit-learn"),
        Source("breast-cancer", "30 measurements of cell nuclei, 2 classes", "scikit-learn"),
        Source("wine", "13 chemical measurements, 3 classes", "scikit-learn"),
        Source("diabetes", "10 measurements, regression", "scikit-learn"),
        Source("blobs", "Gaussian clusters, any number of classes", "synthetic"),
        _mnist(),
        _cifar10(),
        Source(
            "tinyshakespeare",
            "1.1 MB of plays, next character",
            "A. Karpathy",
            (_SHAKESPEARE,),
            ((_SHAKESPEARE.path,),),
        ),
        Source("stdlib-text", "the source of Python's standard library, next character", "Python"),
        _planetoid("Cora", "2,708 papers and their citations, 7 topics (extra: graph)", _CORA),
        _planetoid("CiteSeer", "3,327 papers and their citations, 6 topics (extra: graph)", _CITESEER),
    )
}
