"""Arithmetic on one number per tensor: floats and vectors must agree."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch

from assay.optim._numbers import add_quotients, add_squares, clear, largest_entries, numbers, write

TENSORS = [torch.tensor([[1.0, -3.0]]), torch.zeros(0), torch.tensor(0.5)]


def test_floats_and_vectors_give_the_same() -> None:
    """An optimizer would step otherwise when compiled or on an accelerator, where vectors are used."""
    steps, sizes = torch.tensor([1.0, 2.0, 7.0], dtype=torch.float64), torch.tensor([0.5, 0.0, 3.0])

    def function(t: float, size: float) -> tuple[float, float, float]:
        return 2.0, (t > 1) * size / (t - 0.5), 0.9**t

    as_floats = numbers(function, TENSORS, steps, sizes)
    with patch("torch.compiler.is_compiling", return_value=True):
        as_tensors = numbers(function, TENSORS, steps, sizes)
    assert as_floats == [[2.0] * 3, [0.0, 0.0, 3 / 6.5], [0.9, 0.9**2, 0.9**7]]
    for floats, tensors in zip(as_floats, as_tensors, strict=True):
        assert all(isinstance(number, torch.Tensor) for number in tensors)
        assert floats == pytest.approx([float(number) for number in tensors], rel=1e-6)
    for values in (as_floats[2], as_tensors[2]):
        targets = [torch.zeros(()) for _ in range(3)]
        write(targets, values)
        assert [t.item() for t in targets] == pytest.approx([0.9, 0.9**2, 0.9**7])


def test_weighted_updates_with_floats_and_tensors() -> None:
    """The fused update would not be the sum that it stands for."""
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 5.0])
    for weights in ([0.5], [torch.tensor(0.5)]):
        target = [torch.ones(2)]
        add_quotients(target, [a], (b,), weights)
        torch.testing.assert_close(target[0], 1 + 0.5 * a / b)
        add_squares(target, (a,), weights)
        torch.testing.assert_close(target[0], 1 + 0.5 * a / b + 0.5 * a * a)


@pytest.mark.parametrize("which", [[1.0, 0.0], [torch.tensor(1.0), torch.tensor(0.0)]], ids=["floats", "tensors"])
def test_an_entry_that_overflowed_is_cleared(which: list[float] | list[torch.Tensor]) -> None:
    """It would become NaN, as 0 times infinity is, or a tensor that is to stay be cleared."""
    gone, kept = torch.tensor([math.inf, -1.0]), torch.tensor([math.inf, -1.0])
    clear([gone, kept], which)
    assert gone.tolist() == [0.0, 0.0] and kept.tolist() == [math.inf, -1.0]


def test_largest_entries() -> None:
    """A negative, missing or NaN entry would be overlooked."""
    assert largest_entries(TENSORS).tolist() == [3.0, 0.0, 0.5]
    assert math.isnan(largest_entries([torch.tensor([1.0, math.nan])]).item())
