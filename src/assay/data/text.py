"""Character-level language modelling: given a window of characters, predict the next one at every position.

Shapes: N windows of `context` characters. Targets are the inputs moved on by one character. The text is cut into three
consecutive regions (80%, 10%, 10%) first and each region into windows that do not overlap, so no character of the
validation or test text is ever seen in training.
"""

from __future__ import annotations

import string
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from assay.data.dataset import Dataset, Split, check_sizes
from assay.data.files import obtain
from assay.errors import InvalidInput, MissingData

__all__ = ["TextDataset", "stdlib_text", "tinyshakespeare"]

_REGIONS = (0.0, 0.8, 0.9, 1.0)
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# Fixed, so that the classes are the same under every Python version.
_SOURCE_CODE = "\n" + " " + string.digits + string.ascii_letters + string.punctuation + _UNKNOWN


@dataclass(frozen=True)
class TextDataset(Dataset):
    """Windows of text as int64 tokens: inputs (N, context), targets (N, context).

    Args:
        vocabulary: Token t stands for the character `vocabulary[t]`.
    """

    vocabulary: str = ""

    def decode(self, tokens: Tensor) -> str:
        """Return the text of a one-dimensional tensor of tokens."""
        return "".join(self.vocabulary[token] for token in tokens.tolist())


def tinyshakespeare(
    *,
    context: int = 64,
    train: int = 8000,
    validation: int = 1000,
    test: int = 1000,
    generator: torch.Generator | None = None,
) -> TextDataset:
    """1.1 million characters of Shakespeare's plays (Karpathy 2015), 65 different ones.

    Args:
        context: Characters per window, at least 1.
        train: Windows for training.
        validation: Windows for validation.
        test: Windows for testing.
        generator: Decides which windows are drawn; None is a fixed draw.

    Raises:
        InvalidInput: If a size or `context` is below 1, or a region has fewer windows than asked for.
        MissingData: If the text is nowhere and cannot be downloaded.
    """
    tokens, vocabulary = _shakespeare(obtain("tinyshakespeare", "tinyshakespeare/input.txt"))
    return _windows("tinyshakespeare", tokens, vocabulary, context, (train, validation, test), generator)


def stdlib_text(
    *,
    context: int = 64,
    train: int = 8000,
    validation: int = 1000,
    test: int = 1000,
    generator: torch.Generator | None = None,
) -> TextDataset:
    """The source of the running Python's standard library (its top-level modules in alphabetical order), 97 characters.

    Real text that is always there; it differs a little from one Python version to the next. A character outside
    printable ASCII counts as one "unknown" character.

    Args:
        context: Characters per window, at least 1.
        train: Windows for training.
        validation: Windows for validation.
        test: Windows for testing.
        generator: Decides which windows are drawn; None is a fixed draw.

    Raises:
        InvalidInput: If a size or `context` is below 1, or a region has fewer windows than asked for.
        MissingData: If this Python has no source files.
    """
    tokens = _standard_library(Path(sysconfig.get_paths()["stdlib"]))
    return _windows("stdlib-text", tokens, _SOURCE_CODE, context, (train, validation, test), generator)


@cache
def _shakespeare(path: Path) -> tuple[Tensor, str]:
    text = path.read_text(encoding="utf-8")
    vocabulary = "".join(sorted(set(text)))
    return _encode(text, vocabulary), vocabulary


@cache
def _standard_library(folder: Path) -> Tensor:
    modules = sorted(folder.glob("*.py"))
    if not modules:
        raise MissingData(f"no source files in {folder}; stdlib-text needs a Python that has its library's sources")
    text = "".join(module.read_text(encoding="utf-8", errors="replace") for module in modules)
    return _encode(text.expandtabs(4), _SOURCE_CODE)


def _encode(text: str, vocabulary: str) -> Tensor:
    """Map characters to their place in the vocabulary; what is not in it to its last one."""
    token_of = {character: token for token, character in enumerate(vocabulary)}
    return torch.tensor([token_of.get(character, len(vocabulary) - 1) for character in text])


def _windows(
    name: str,
    tokens: Tensor,
    vocabulary: str,
    context: int,
    sizes: tuple[int, int, int],
    generator: torch.Generator | None,
) -> TextDataset:
    if context < 1:
        raise InvalidInput(f"{name}: context must be at least 1 character, got {context}")
    generator = generator or torch.Generator().manual_seed(0)
    borders = [int(border * len(tokens)) for border in _REGIONS]
    splits = []
    for size, start, stop in zip(sizes, borders, borders[1:], strict=False):
        # A window reads one character beyond itself: the last target.
        windows = tokens[start:stop].unfold(0, context + 1, context) if stop - start > context else tokens[:0]
        check_sizes([size], len(windows))
        chosen = windows[torch.randperm(len(windows), generator=generator)[:size]]
        splits.append(Split(chosen[:, :-1].contiguous(), chosen[:, 1:].contiguous()))
    return TextDataset(name, splits[0], splits[1], splits[2], len(vocabulary), vocabulary)
