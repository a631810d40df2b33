import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.errors import InvalidInput
from assay.models.group_mlp import GroupMLP
from assay.probes.frequencies import FrequencyConcentration, frequency_power, frequency_share
from assay.probes.view import View
from assay.watch import Watch


def random(*shape, seed=0):
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(modulus, k, phase):
    """cos(2 pi k t / M + phase)."""
    return torch.cos(2 * math.pi * k * torch.arange(modulus, dtype=torch.float64) / modulus + phase)


@settings(max_examples=20, deadline=None)
@given(modulus=st.integers(2, 12), operands=st.integers(1, 3), seed=st.integers(0, 99))
def test_power_equals_sums_of_cosines_and_sums_to_the_norm(modulus, operands, seed):
    """A frequency, its mirror image or an operand is lost, counted twice or scaled."""
    weight = random(3, operands * modulus, seed=seed)
    power = frequency_power(weight, modulus)
    parts = weight.unflatten(1, (operands, modulus))
    centred = parts - parts.mean(dim=2, keepdim=True)
    torch.testing.assert_close(power.sum(dim=1), centred.square().sum(dim=(1, 2)))
    for k in range(1, modulus // 2 + 1):
        expected = torch.zeros(3, dtype=torch.float64)
        for basis in (wave(modulus, k, 0.0), wave(modulus, k, -math.pi / 2)):
            if basis.norm() > 1e-6:  # the sine of the alternating mode is 0
                expected += ((parts @ basis) / basis.norm()).square().sum(dim=1)
        torch.testing.assert_close(power[:, k - 1], expected)


@pytest.mark.parametrize("modulus", [7, 8])
def test_a_single_frequency_is_found_whatever_phase_and_offset(modulus):
    """A wave's frequency is off by one, or its phases or a constant dilute it."""
    for k in range(1, modulus // 2 + 1):
        weight = torch.cat([wave(modulus, k, 0.3) + 5, 2 * wave(modulus, k, 1.9)])[None]
        frequency, share = frequency_share(weight, modulus)
        assert frequency.item() == k and share.item() == pytest.approx(1.0, abs=1e-12)


def test_two_equal_frequencies_share():
    """The share of a mixture is not its part of the power."""
    weight = (wave(11, 2, 0.0) + 3 * wave(11, 5, 1.0))[None]
    assert [v.item() for v in frequency_share(weight, 11)] == [5, pytest.approx(0.9)]
    assert frequency_share(torch.ones(1, 11), 11)[1].item() == 0.0


def network(modulus, waves):
    """A group network whose hidden nodes are the given single frequencies."""
    model = GroupMLP((2 * modulus,), modulus, width=len(waves)).double()
    model.hidden.weight.data = torch.stack([torch.cat([wave(modulus, k, 0.1), wave(modulus, k, 0.2)]) for k in waves])
    return model


def test_coverage_counts_settled_living_nodes():
    """Coverage counts a frequency twice, a node of noise or one that has decayed away."""
    model = network(11, [1, 1, 4, 5])
    probe = FrequencyConcentration(11)
    assert probe.measure(View(model))["frequencies_found"] == pytest.approx(3 / 5)
    model.hidden.weight.data[3] *= 1e-3
    model.hidden.weight.data[2, :11] += wave(11, 2, 0.0)
    model.hidden.weight.data[2, 11:] += wave(11, 3, 0.0)
    values = probe.measure(View(model))
    assert values["frequencies_found"] == pytest.approx(1 / 5)
    # powers: two pure nodes of 11, one of 11 + 11, whose best frequency has half
    assert values["frequency_concentration"] == pytest.approx(33 / 44, rel=1e-5)


def test_layers_are_found_and_missing_ones_said():
    """An embedding is not read, a layer that fits by name only is, or a network without one gives a number."""
    embedding = nn.Embedding(7, 2).double()
    embedding.weight.data = torch.stack([wave(7, 1, 0.0), wave(7, 3, 0.0)], dim=1)
    model = nn.Sequential(embedding, nn.Flatten(), nn.Linear(4, 7).double())
    assert FrequencyConcentration(7).measure(View(model))["frequency_concentration"] == pytest.approx(1.0)
    watch = Watch(nn.Linear(4, 3), [FrequencyConcentration(7)], (torch.ones(3, 4), torch.arange(3)))
    assert math.isnan(watch.measure(0)["frequencies_found"]) and "modulo 7" in watch.skipped["frequencies_found"]
    for layer in ("hidden", "head"):
        with pytest.raises(InvalidInput, match=layer):
            FrequencyConcentration(7, layer=layer).measure(View(nn.ModuleDict({"head": nn.Linear(4, 3)})))
    with pytest.raises(InvalidInput):
        FrequencyConcentration(1)
    with pytest.raises(InvalidInput):
        frequency_power(torch.ones(2, 10), 7)


@pytest.mark.parametrize("value", [math.nan, 1.0])
def test_broken_or_constant_weights_are_skipped(value):
    """NaN or constant weights have a frequency."""
    model = network(5, [1, 2])
    model.hidden.weight.data.fill_(value)
    probe = FrequencyConcentration(5)
    assert all(map(math.isnan, probe.measure(View(model)).values())) and len(probe.skipped) == 2
    with pytest.raises(InvalidInput):
        probe.figure()


def test_the_figure_shows_every_node():
    """The picture lacks nodes or frequencies."""
    probe = FrequencyConcentration(11)
    probe.measure(View(network(11, [1, 4, 5])))
    assert probe.figure().axes[0].images[0].get_array().shape == (3, 5)
