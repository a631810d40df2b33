"""The table of an operation modulo p: complete, correct, disjoint and decided by the generator."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch

from assay.data.arithmetic import modular_arithmetic

OPERATORS = {"add": operator.add, "subtract": operator.sub, "product": operator.mul}


@pytest.mark.parametrize("operation", list(OPERATORS))
def test_all_pairs_once_with_the_right_class(operation: str) -> None:
    """A pair would be missing, twice there (train in test), or have a wrong result."""
    table = modular_arithmetic(7, operation=operation, train_fraction=0.5)
    apply: Callable[[int, int], int] = OPERATORS[operation]
    pairs = []
    for split in (table.train, table.validation, table.test):
        first, second = split.inputs[:, :7].argmax(1), split.inputs[:, 7:].argmax(1)
        assert (split.inputs.sum(1) == 2).all() and (split.inputs.amax(1) == 1).all()
        for a, b, c in zip(first.tolist(), second.tolist(), split.targets.tolist(), strict=True):
            assert c == apply(a, b) % 7
            pairs.append((a, b))
    assert sorted(pairs) == [(a, b) for a in range(7) for b in range(7)]


def test_sizes_of_the_splits() -> None:
    """The train fraction, on which grokking depends, would be another than asked for."""
    table = modular_arithmetic(47, train_fraction=0.6)
    assert (len(table.train), len(table.validation), len(table.test)) == (1325, 220, 664)
    assert table.num_classes == table.outputs == 47 and table.input_shape == (94,)


def test_split_follows_the_generator_and_nothing_else() -> None:
    """Two arms with the same seed would train on different pairs, or two seeds on the same."""

    def inputs(seed: int | None) -> torch.Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return modular_arithmetic(11, generator=generator).train.inputs

    before = torch.get_rng_state()
    assert torch.equal(inputs(1), inputs(1)) and torch.equal(inputs(None), inputs(None))
    assert not torch.equal(inputs(1), inputs(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operation": "divide"}, "add, subtract, product; got 'divide'"),
        ({"p": 1}, "p must be at least 2"),
        ({"p": 5, "train_fraction": 1.0}, "every split needs at least 1"),
        ({"p": 5, "train_fraction": -0.5}, "every split needs at least 1"),
    ],
)
def test_refuses_what_cannot_be_split(options: dict[str, object], message: str) -> None:
    """A study would run on an empty test split."""
    with pytest.raises(ValueError, match=message):
        modular_arithmetic(**options)  # type: ignore[arg-type]
