"""Text: windows that are really in the text, targets one character on, regions that never meet."""

from __future__ import annotations

import string
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from assay.data.text import stdlib_text, tinyshakespeare
from assay.errors import InvalidInput, MissingData

# Every window of this text is unique: numbers in sequence.
TEXT = " ".join(str(number) for number in range(10_000, 20_000))


@pytest.fixture
def shakespeare(folders) -> str:
    """The text of this file in the place of tinyshakespeare's."""
    path = folders.given / "tinyshakespeare" / "input.txt"
    path.parent.mkdir(parents=True)
    path.write_text(TEXT)
    return TEXT


def test_targets_are_the_next_characters(shakespeare: str) -> None:
    """The model would learn to copy, or to predict two characters on."""
    data = tinyshakespeare(context=16, train=50, validation=20, test=20)
    for x, y in zip(data.train.inputs, data.train.targets, strict=True):
        assert data.decode(x) + data.decode(y[-1:]) in shakespeare
        assert torch.equal(x[1:], y[:-1])
    assert data.num_classes == len(set(shakespeare)) == data.outputs and data.input_shape == (16,)


def test_moving_keeps_the_vocabulary(shakespeare: str) -> None:
    """Text on another device could not be decoded any more."""
    data = tinyshakespeare(context=16, train=50, validation=20, test=20)
    moved = data.to("cpu")
    assert moved.decode(moved.train.inputs[0]) == data.decode(data.train.inputs[0])


def test_windows_neither_overlap_nor_cross_regions(shakespeare: str) -> None:
    """Text of the test region would be seen in training."""
    data = tinyshakespeare(context=20, train=2000, validation=200, test=200)
    regions = []
    for split in (data.train, data.validation, data.test):
        starts = sorted(shakespeare.index(data.decode(window)) for window in split.inputs)
        assert all(later - earlier >= 20 for earlier, later in pairwise(starts))
        regions.append((starts[0], starts[-1] + 20))
    assert regions[0][1] <= regions[1][0] and regions[1][1] <= regions[2][0]


def test_generator_decides_which_windows(shakespeare: str) -> None:
    """Seeds would all see the same windows."""
    sizes = {"context": 16, "train": 50, "validation": 20, "test": 20}
    drawn = [tinyshakespeare(**sizes, generator=torch.Generator().manual_seed(seed)).train.inputs for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("arguments", [{"context": 0}, {"context": 10**6}, {"train": 10**6}, {"test": 0}])
def test_bad_arguments_are_refused(shakespeare: str, arguments: dict[str, int]) -> None:
    """Fewer windows than asked for would come back silently."""
    with pytest.raises(InvalidInput):
        tinyshakespeare(**{"context": 16, "train": 50, "validation": 20, "test": 20, **arguments})


def test_missing_text_says_where_to_put_it(folders) -> None:
    """The user would see a traceback of urllib."""
    with pytest.raises(MissingData, match=r"tinyshakespeare/input\.txt"):
        tinyshakespeare()


def test_stdlib_windows_are_source_code() -> None:
    """The text would come from elsewhere, or characters would be mapped wrongly."""
    data = stdlib_text(context=80, train=300, validation=50, test=50)
    unknown = data.vocabulary[-1]
    assert data.num_classes == 97 and set(data.vocabulary[:-1]) == set(string.printable) - set("\t\r\v\f")
    source = "".join(
        p.read_text("utf-8", "replace") for p in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    )
    text = "".join(c if c in data.vocabulary else unknown for c in source.expandtabs(4))
    assert all(data.decode(window) in text for window in data.test.inputs)


def test_real_text_has_its_known_vocabulary(real_data: Path) -> None:
    """The text would be cut short or decoded wrongly."""
    if not (real_data / "tinyshakespeare" / "input.txt").exists():
        pytest.skip("needs tinyshakespeare/input.txt")
    assert tinyshakespeare().num_classes == 65
