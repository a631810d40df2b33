from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.compress.range_expansion import (
    ExpandedGroups,
    dequantize_expanded,
    expansion_exponent,
    quantize_expanded,
)
from assay.errors import InvalidInput

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
RANGE = 448 * 448 / 2


def log_normal(*shape, sigma=1.0, seed=0):
    """Signed log-normal numbers, like moments of gradients."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).mul(sigma).exp() * torch.randn(*shape, generator=generator).sign()


def by_centre(group):
    """One group by the formulas of the official kernel, in Python floats: centre sqrt(M m), three numbers per group."""
    magnitudes = [abs(x) for x in group]
    largest, smallest = max(magnitudes), min(m for m in magnitudes if m > 0)
    centre = math.sqrt(largest) * math.sqrt(smallest)
    k = math.floor(math.log2(RANGE) / math.log2(largest / smallest) * 16) / 16
    scale = (largest / centre) ** k / 448
    stretched = [math.copysign((abs(x) / centre) ** k / scale, x) for x in group]
    codes = torch.tensor(stretched, dtype=torch.float64).to(E4M3).double().tolist()
    restored = [math.copysign((abs(q) * scale) ** (1 / k) * centre, q) for q in codes]
    return stretched, codes, restored, k


@pytest.mark.parametrize("sigma", [0.2, 1.0, 3.0])
def test_codes_are_those_of_the_official_formulas(sigma):
    """Measuring from the maximum instead of the centre would change codes or restored numbers."""
    x = log_normal(20, 128, sigma=sigma)
    codes, _, exponent = expanded = quantize_expanded(x)
    values = dequantize_expanded(expanded)
    for i, group in enumerate(x.double().tolist()):
        stretched, expected, restored, k = by_centre(group)
        assert exponent[i] == 16 * k
        step = [max(2.0 ** (math.floor(math.log2(abs(s))) - 3), 2**-9) for s in stretched]
        middle = [abs(abs(s / t) % 1 - 0.5) < 1e-3 for s, t in zip(stretched, step, strict=True)]
        for j, at_a_tie in enumerate(middle):
            if not at_a_tie:
                assert codes[i, j].item() == expected[j]
                assert values[i, j].item() == pytest.approx(restored[j], rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "span", "k"),
    [
        (E4M3, RANGE, 1),
        (E4M3, RANGE**0.5, 2),
        (E4M3, RANGE**2, 0.5),
        (E4M3, 1000, 1.625),
        (E4M3, 1.0, 255 / 16),
        (E5M2, 57344**2 / 2, 1),
        (E5M2, 1000, 3.0625),
    ],
)
def test_exponent_in_closed_form(dtype, span, k):
    """The power would not be log R / log span, rounded down to sixteenths, or a group of equal numbers have none."""
    group = torch.tensor([[1.0, 0.0, span, math.sqrt(span)]])
    assert expansion_exponent(group, dtype).item() == k
    assert expansion_exponent(group * 1e-12, dtype).item() == k


def test_a_group_that_fills_the_range_is_plain_fp8():
    """With k = 1 expansion must change nothing."""
    x = torch.logspace(0, math.log10(RANGE), 128, dtype=torch.float64)[None]
    expanded, plain = quantize_expanded(x), quantize_expanded(x, expand=False)
    assert expanded.exponent.item() == plain.exponent.item() == 16
    difference = (expanded.codes.double() - plain.codes.double()).abs() / plain.codes.double()
    assert (difference > 0).sum() <= 2  # beside ties, since one goes through a logarithm
    assert torch.equal(plain.codes.double(), (x / RANGE * 448).to(E4M3).double())


@settings(max_examples=40, deadline=None)
@given(
    entries=st.integers(0, 700),
    group_size=st.sampled_from([1, 7, 16, 128]),
    sigma=st.floats(0.01, 6),
    dtype=st.sampled_from([E4M3, E5M2]),
    seed=st.integers(0, 99),
)
def test_round_trip_error_is_bounded_by_the_format_and_k(entries, group_size, sigma, dtype, seed):
    """A restored number would be further off than half a step of the format, shrunk by k; or signs or extremes be lost."""
    x = log_normal(entries, sigma=sigma, seed=seed)
    expanded = quantize_expanded(x, group_size, dtype)
    restored = dequantize_expanded(expanded, group_size)
    assert expanded.codes.shape == restored.shape == x.shape
    assert len(expanded.scale) == len(expanded.exponent) == math.ceil(entries / group_size)
    k = (expanded.exponent.double() / 16).repeat_interleave(group_size)[:entries]
    half, smallest_normal = (2**-4, 2**-6) if dtype is E4M3 else (2**-3, 2**-14)
    normal = expanded.codes.double().abs() > smallest_normal
    error = (restored.double() / x.double()).abs().log().abs()
    bound = -math.log1p(-half) / k + 1e-5
    assert (error[normal] <= bound[normal]).all()
    assert torch.equal(restored.sign(), x.sign())  # nothing that is not zero becomes zero
    for group, back in zip(x.split(group_size), restored.split(group_size), strict=True):
        if len(group):
            assert back.abs().max().item() == group.abs().max().item()


@pytest.mark.parametrize("sigma", [0.3, 0.7])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_expansion_divides_the_error_by_k(sigma, dtype):
    """The paper's gain: on log-normal moments the relative error of restored numbers falls as 1 / k, and so k times."""
    x = log_normal(500, 128, sigma=sigma).abs()
    expanded, plain = (quantize_expanded(x, dtype=dtype, expand=expand) for expand in (True, False))
    error, plain_error = ((dequantize_expanded(q) / x - 1).abs().mean().item() for q in (expanded, plain))
    k = expanded.exponent.double().mean().item() / 16
    assert k > 2
    assert plain_error / error == pytest.approx(k, rel=0.15)


def test_after_expansion_both_formats_are_equally_good():
    """The paper: without expansion E4M3 beats E5M2 on second moments, with it they are nearly the same."""
    x = log_normal(500, 128, sigma=0.5).abs()

    def error(dtype, expand):
        return (dequantize_expanded(quantize_expanded(x, dtype=dtype, expand=expand)) / x - 1).abs().mean().item()

    assert error(E5M2, False) / error(E4M3, False) > 1.8
    assert error(E5M2, True) / error(E4M3, True) == pytest.approx(1, abs=0.1)


def test_scale_invariance():
    """Codes would depend on the units of the gradient: 2^a x must have x's codes and 2^a x's scales, exactly."""
    x = log_normal(10, 128)
    codes, scale, exponent = quantize_expanded(x)
    for power in (-80, 60):
        moved = quantize_expanded(x * 2.0**power)
        assert torch.equal(moved.codes.float(), codes.float())
        assert torch.equal(moved.exponent, exponent)
        assert torch.equal(moved.scale, scale * 2.0**power)


def test_zeros_equal_groups_and_padding():
    """Zeros would count as the smallest magnitude (also in the first place), or padding join the last group."""
    x = log_normal(128)
    holes = x.clone()
    holes[[0, 5, 127]] = 0
    restored = dequantize_expanded(quantize_expanded(holes))
    assert torch.equal(restored == 0, holes == 0)
    assert (restored[1:5] / x[1:5] - 1).abs().max() < 0.07
    assert torch.equal(dequantize_expanded(quantize_expanded(torch.zeros(200))), torch.zeros(200))
    equal = torch.tensor([3e-20, -3e-20] * 70)
    assert torch.equal(dequantize_expanded(quantize_expanded(equal)), equal)
    assert dequantize_expanded(quantize_expanded(torch.tensor(-7.0))).item() == -7
    whole, part = quantize_expanded(x[:100]), quantize_expanded(x[:100], group_size=100)
    assert torch.equal(whole.codes.float(), part.codes.float()) and whole.exponent == part.exponent


def test_strided_tensors_are_read_in_their_order():
    """A transposed tensor would be quantized, or restored, in memory order."""
    x = log_normal(40, 30).T
    expanded = quantize_expanded(x, 16)
    assert torch.equal(
        dequantize_expanded(expanded, 16), dequantize_expanded(quantize_expanded(x.contiguous(), 16), 16)
    )


def test_extreme_magnitudes():
    """Products of extremes would overflow, or what is below float32's range give NaN instead of almost zero."""
    x = torch.tensor([1e-30, 1e-20, 1.0, 1e7])
    restored = dequantize_expanded(quantize_expanded(x))
    assert ((restored / x).log10().abs() < 1).all() and restored[-1] == x[-1]
    wider = torch.tensor([1e-38, 1.0, 1e38])
    assert dequantize_expanded(quantize_expanded(wider))[[0, 2]].tolist() == [0, wider[2].item()]
    tiny = torch.tensor([1e-300, 1e-310], dtype=torch.float64)
    assert torch.equal(dequantize_expanded(quantize_expanded(tiny)), torch.zeros(2))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_bad_numbers_show_in_their_group_only(bad):
    """An infinity or NaN would be restored as a number, or spoil other groups."""
    x = torch.ones(256)
    x[3] = bad
    restored = dequantize_expanded(quantize_expanded(x))
    assert restored[:128].isnan().all() and torch.equal(restored[128:], torch.ones(128))


def test_levels_are_the_formats_numbers_to_the_power():
    """The look-up table would be indexed wrongly: all codes at some exponents against the formula."""
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3)
    for sixteenths in (1, 16, 37, 255):
        expanded = ExpandedGroups(codes, torch.tensor([2.0]), torch.tensor([sixteenths], dtype=torch.uint8))
        expected = 2 * codes.double().sign() * (codes.double().abs() / 448) ** (16 / sixteenths)
        torch.testing.assert_close(
            dequantize_expanded(expanded, 256, torch.float64), expected, rtol=1e-6, atol=1e-37, equal_nan=True
        )


def test_bad_input_is_refused():
    """Integers, empty groups or another type would be quantized to something meaningless."""
    with pytest.raises(InvalidInput, match="int64"):
        quantize_expanded(torch.arange(3))
    with pytest.raises(InvalidInput, match="at least 1"):
        quantize_expanded(torch.ones(3), 0)
    with pytest.raises(InvalidInput, match=r"got torch.bfloat16"):
        quantize_expanded(torch.ones(3), dtype=torch.bfloat16)
