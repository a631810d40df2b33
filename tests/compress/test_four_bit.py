"""4-bit formats against brute force over their levels, and what a format must keep."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.compress.four_bit import FP4, Int4, straight_through
from assay.errors import InvalidInput

FORMATS = [
    Int4(group=8),
    Int4(group=8, outliers=1),
    Int4(group=8, outliers=2, symmetric=True),
    FP4(group=8),
    FP4(group=8, grid="e2m1"),
]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(group: list[float], form: Int4 | FP4) -> tuple[list[float], list[float]]:
    """Return the outliers of a group and its format's levels, written the slow way."""
    order = sorted(group, key=abs, reverse=True)
    outliers, rest = order[: form.outliers], order[form.outliers :]
    s = max(map(abs, rest))
    if isinstance(form, FP4):
        sizes = [s * i / 4 for i in range(5)] if form.grid == "uniform9" else [s * e / 6 for e in E2M1]
        return outliers, [sign * size for size in sizes for sign in (1, -1)]
    if form.symmetric:
        return outliers, [s / 7 * i for i in range(-8, 8)]
    low, high = min(0.0, *rest), max(0.0, *rest)
    step = (high - low) / 15
    zero = round(-low / step)
    return outliers, [step * (i - zero) for i in range(16)]


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_each_entry_goes_to_the_nearest_level(form: Int4 | FP4) -> None:
    """A scale, a zero point or a level would be wrong, or an outlier rounded."""
    x = numbers(20, 24)
    for group, found in zip(x.view(-1, 8).tolist(), form(x).view(-1, 8).tolist(), strict=True):
        outliers, grid = levels(group, form)
        for a, b in zip(group, found, strict=True):
            expected = a if a in outliers else min(grid, key=lambda level: abs(level - a))
            assert b == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_how_many_numbers_a_group_has(form: Int4 | FP4) -> None:
    """More than 4 bits per entry would be kept."""
    most = {FP4: 15, Int4: 16}[type(form)] + form.outliers
    wide = type(form)(**{**vars(form), "group": 512})
    assert len(wide(numbers(512)).unique()) <= most


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_rounding_again_changes_nothing(form: Int4 | FP4) -> None:
    """Levels would not be levels: a weight that is one would move."""
    once = form(numbers(6, 16))
    again = form(once)
    if isinstance(form, Int4) and not form.symmetric:  # its range may have shrunk by half a step
        assert (again - once).abs().max() <= once.abs().max() / 15
    else:
        torch.testing.assert_close(again, once)


def test_ties_of_e2m1_go_to_the_even_mantissa() -> None:
    """Rounding at the middle of two levels would not be the hardware's."""
    x = torch.tensor([6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    expected = torch.tensor([6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    assert torch.equal(FP4(group=8, outliers=0, grid="e2m1")(x), expected)
    assert torch.equal(FP4(group=8, outliers=0, grid="e2m1")(-x), -expected)


def test_equal_outliers_are_no_more_than_asked_for() -> None:
    """Of three equal largest entries, two would leave the third without a level."""
    x = torch.tensor([5.0, -5.0, 5.0, 1.0])
    torch.testing.assert_close(Int4(group=4, outliers=2, symmetric=True)(x)[:3], x[:3])
    torch.testing.assert_close(
        Int4(group=4, outliers=1, symmetric=True)(torch.tensor([9.0, 9.0, 1.0, 0.0]))[3:], x[:1] * 0
    )


def test_a_group_of_one_sign_keeps_its_numbers() -> None:
    """The range would be the group's own and 0 not in it: the official formula gives 0.1 for all of these."""
    x = torch.tensor([1.0, 0.9, 0.95, 1.0])
    torch.testing.assert_close(Int4(group=4)(x), x, atol=1 / 30, rtol=0)


def test_short_rows_and_empty_tensors() -> None:
    """A group would reach into the next row, or the rest of a row be left out."""
    x = numbers(3, 10)
    found = FP4(group=8, outliers=1)(x)
    torch.testing.assert_close(found[:, 8:], FP4(group=2, outliers=1)(x[:, 8:]))
    torch.testing.assert_close(found[1], FP4(group=8, outliers=1)(x[1]))
    assert FP4()(torch.zeros(0, 5)).shape == (0, 5) and Int4()(torch.zeros(4)).tolist() == [0.0] * 4
    assert Int4(group=4)(torch.tensor([math.nan, 1.0, -1.0, 0.5]))[0].isnan()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), power=st.integers(-2, 8))
def test_the_scale_of_numbers_does_not_matter(seed: int, power: int) -> None:
    """A format would have a preferred size, within the floor of its scale."""
    x = numbers(2, 16, seed=seed)
    for form in FORMATS:
        torch.testing.assert_close(form(2.0**power * x), 2.0**power * form(x))


def test_stochastic_rounding_is_unbiased() -> None:
    """The mean of many roundings would not be the number, though it lies within the range."""
    x = numbers(1, 8)
    form, generator = Int4(group=8, symmetric=True, stochastic=True), torch.Generator().manual_seed(0)
    mean = form(x.expand(4000, 8), generator).mean(0)
    step = x.abs().max() / 7
    inside = x[0].abs() < x.abs().max()
    # a rounding's deviation is at most half a step
    assert (mean - x[0])[inside].abs().max() < 4 * step / 2 / 4000**0.5
    assert (Int4(group=8, symmetric=True)(x) - x).abs().max() > 0.1 * step
    with pytest.raises(InvalidInput, match="generator"):
        form(x)


def test_gradients_go_straight_through() -> None:
    """Rounding would stop the gradient, or scale it; per-sample gradients by vmap would fail."""
    x = numbers(4, 8).requires_grad_()
    upstream = numbers(4, 8, seed=1)
    assert torch.equal(straight_through(x, FORMATS[2]), FORMATS[2](x))
    (found,) = torch.autograd.grad(straight_through(x, FORMATS[2]), x, upstream)
    assert torch.equal(found, upstream)
    mapped = torch.func.vmap(torch.func.grad(lambda row: straight_through(row, FORMATS[2]).square().sum()))(x.detach())
    torch.testing.assert_close(mapped, 2 * FORMATS[2](x.detach()))


def test_bad_formats_and_inputs_are_refused() -> None:
    """A typing error would train, badly."""
    for make in (lambda: Int4(group=0), lambda: Int4(outliers=-1), lambda: FP4(group=2, outliers=2), lambda: Int4(2.5)):  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match=r"group|outliers"):
            make()
    with pytest.raises(InvalidInput, match="grid"):
        FP4(grid="e1m2")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="floating-point"):
        Int4()(torch.arange(4))
