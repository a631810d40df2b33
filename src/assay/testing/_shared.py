"""What the checks of several seams have in common."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "assert_bit_equal",
    "assert_close",
    "copies",
    "global_generators_untouched",
    "pickled",
    "seeded",
]

T = TypeVar("T")


@contextmanager
def global_generators_untouched() -> Iterator[None]:
    """Fail if the block draws from, or reseeds, torch's, NumPy's or Python's global generator.

    Raises:
        AssertionError: Naming the generator.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), before[0]), "the part used torch's global generator; pass it a generator"
    assert_bit_equal(np.random.get_state(), before[1], "NumPy's global generator")
    assert random.getstate() == before[2], "the part used Python's global generator; pass it a generator"


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator for a check's own draws."""
    return torch.Generator().manual_seed(seed)


def pickled(value: T) -> T:
    """Return the value after a round trip through pickle.

    Raises:
        AssertionError: If it cannot be pickled.
    """
    try:
        return pickle.loads(pickle.dumps(value))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise AssertionError(f"{type(value).__name__} cannot be pickled: {error}") from error


def assert_close(actual: Tensor, expected: Tensor, what: str, *, rtol: float, atol: float = 0.0) -> None:
    """Fail unless two tensors agree within tolerances, whatever their types.

    Raises:
        AssertionError: With the largest difference.
    """
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} is not {tuple(expected.shape)}"
    a, b = actual.detach().double(), expected.detach().double()
    if not torch.allclose(a, b, rtol=rtol, atol=atol):
        raise AssertionError(f"{what}: largest difference {float((a - b).abs().max()):.3g} (rtol {rtol}, atol {atol})")


def assert_bit_equal(actual: Any, expected: Any, what: str) -> None:
    """Fail unless two nested states (dicts, sequences, tensors, arrays, numbers) are equal bit for bit.

    Raises:
        AssertionError: With the path to the first difference.
    """
    if isinstance(expected, Tensor):
        same = isinstance(actual, Tensor) and actual.dtype == expected.dtype and _same_bits(actual, expected)
        assert same, f"{what} differs"
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(actual, expected), f"{what} differs"
    elif isinstance(expected, Mapping):
        assert set(actual) == set(expected), f"{what}: keys {sorted(map(str, set(actual) ^ set(expected)))} differ"
        for key, value in expected.items():
            assert_bit_equal(actual[key], value, f"{what}[{key!r}]")
    elif isinstance(expected, Sequence) and not isinstance(expected, (str, bytes)):
        assert len(actual) == len(expected), f"{what}: length {len(actual)} is not {len(expected)}"
        for index, value in enumerate(expected):
            assert_bit_equal(actual[index], value, f"{what}[{index}]")
    else:
        both_nan = actual != actual and expected != expected
        assert actual == expected or both_nan, f"{what}: {actual!r} is not {expected!r}"


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) and torch.equal(a != a, b != b)


def copies(value: T) -> dict[str, T]:
    """Return a deep copy and a pickled copy of a value by the name of the way.

    Raises:
        AssertionError: If it cannot be copied.
    """
    return {"deepcopy": copy.deepcopy(value), "pickle": pickled(value)}
