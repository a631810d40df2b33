from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.compress.fp8_scaling import dequantize, group_maxima, largest, quantize_per_group, quantize_per_tensor
from assay.errors import InvalidInput

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def format_values(dtype):
    """All finite numbers of a format from its definition: sign, biased exponent, mantissa, subnormals; no NaN, no inf."""
    exponent_bits, mantissa_bits, bias = (4, 3, 7) if dtype is E4M3 else (5, 2, 15)
    values = []
    for exponent in range(2**exponent_bits):
        for mantissa in range(2**mantissa_bits):
            reserved = exponent == 2**exponent_bits - 1 and (mantissa == 7 if dtype is E4M3 else True)
            if not reserved:
                fraction = mantissa / 2**mantissa_bits
                power = max(exponent, 1) - bias
                values.append(((exponent > 0) + fraction) * 2.0**power)
    return values  # ascending; the place in the list has the parity of the mantissa's last bit


def nearest(x, dtype):
    """Round one number to the format by searching its table, ties to even."""
    table = format_values(dtype)
    place = min(range(len(table)), key=lambda i: (abs(table[i] - abs(x)), i % 2))
    return math.copysign(table[place], x)


@pytest.mark.parametrize(("dtype", "count", "top", "bottom"), [(E4M3, 127, 448, 2**-9), (E5M2, 124, 57344, 2**-16)])
def test_the_formats_are_those_of_the_definition(dtype, count, top, bottom):
    """The casts would be to another 8-bit format than the paper's: every code's value against the definition."""
    table = format_values(dtype)
    assert (len(table), table[-1], table[1]) == (count, top, bottom)
    assert torch.arange(count, dtype=torch.uint8).view(dtype).to(torch.float64).tolist() == table
    assert largest(dtype) == top


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_rounding_is_to_the_nearest_number_of_the_table(dtype):
    """Codes would be truncated or ties rounded upwards: every number, every midpoint, and points beside them."""
    table = torch.tensor(format_values(dtype), dtype=torch.float64)
    middles = (table[1:] + table[:-1]) / 2
    x = torch.cat([table, middles, middles * (1 + 1e-6), middles * (1 - 1e-6), -middles])
    codes, scale = quantize_per_tensor(x, dtype)
    assert scale == 1
    assert codes.double().tolist() == [nearest(value, dtype) for value in x.tolist()]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 4), width=st.integers(1, 40), group_size=st.integers(1, 20), seed=st.integers(0, 99))
def test_groups_against_a_loop(rows, width, group_size, seed):
    """Groups would be cut in the wrong places, the last one dropped, or scales not be those the codes were made with."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator) * 10.0 ** torch.randint(-9, 9, (rows, width), generator=generator)
    codes, scales = quantize_per_group(x, group_size)
    values = dequantize(codes, scales, group_size, torch.float64)
    for i in range(rows):
        for g in range(math.ceil(width / group_size)):
            group = x[i, g * group_size : (g + 1) * group_size].double()
            scale = float((group.abs().max().float() / 448).to(torch.bfloat16))
            assert float(scales[i, g]) == scale
            for j, value in enumerate(group.tolist(), start=g * group_size):
                # the division is in float32: beside a tie it may fall on either side
                allowed = {nearest(value / scale * (1 + d), E4M3) for d in (-1e-7, 0, 1e-7)}
                assert float(values[i, j]) in {a * scale for a in allowed}


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5), width=st.integers(1, 50), group_size=st.integers(1, 60), seed=st.integers(0, 99))
def test_group_scaling_gives_the_exact_maximum(rows, width, group_size, seed):
    """The two-stage maximum would differ from the maximum, and with it the codes."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    maxima = group_maxima(x, group_size)
    assert maxima.shape == (rows, math.ceil(width / group_size))
    assert maxima.amax() == x.abs().amax()
    codes, scale = quantize_per_tensor(x, group_size=group_size)
    assert scale == x.abs().amax() / 448
    assert torch.equal(codes.float(), (x / scale).to(E4M3).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_input_type_keeps_its_range(dtype):
    """Half-precision inputs would be divided in half precision, or a tiny gradient vanish beside an added constant."""
    smallest = {torch.float16: 1e-6}.get(dtype, 1e-20)
    x = torch.tensor([1.0, -0.5, 0.25, 0.125]).mul(smallest).to(dtype)
    codes, scale = quantize_per_tensor(x, E5M2)
    assert torch.allclose(dequantize(codes, scale, dtype=torch.float64), x.double(), rtol=2**-2.9)
    assert dequantize(codes, scale, dtype=dtype).dtype is dtype


def test_zeros_stay_zeros_and_bad_numbers_show():
    """An all-zero tensor would become NaN, or an overflow be hidden from loss scaling."""
    for quantized in (quantize_per_tensor(torch.zeros(20)), quantize_per_tensor(torch.zeros(0))):
        assert torch.equal(dequantize(*quantized), torch.zeros(len(quantized[0])))
    assert torch.equal(dequantize(*quantize_per_group(torch.zeros(3, 20)), 16), torch.zeros(3, 20))
    for bad in (math.inf, math.nan):
        x = torch.ones(32)
        x[3] = bad
        assert dequantize(*quantize_per_tensor(x)).isnan().any()
        values = dequantize(*quantize_per_group(x), 16)
        assert values[:16].isnan().any() and torch.allclose(values[16:], torch.ones(16), rtol=1e-2)


def test_bad_input_is_refused():
    """Integers, scalars, empty groups or another type would be quantized to something meaningless."""
    with pytest.raises(InvalidInput, match="int64"):
        quantize_per_tensor(torch.arange(3))
    with pytest.raises(InvalidInput, match="last dimension"):
        quantize_per_group(torch.tensor(1.0))
    with pytest.raises(InvalidInput, match="group size 0"):
        group_maxima(torch.ones(3), 0)
    with pytest.raises(InvalidInput, match=r"float8_e4m3fn or torch.float8_e5m2, got torch.int8"):
        quantize_per_tensor(torch.ones(3), torch.int8)
