"""Layer by layer: known spectra, conventions, and everything that can be odd about a weight."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from assay.errors import InvalidInput
from assay.probes.power_law_tail import hill_alpha, mle_ks_alpha
from assay.probes.view import View
from assay.probes.weight_spectrum import WeightSpectrum, layer_spectrum
from assay.watch import Watch


def with_singular_values(values, h, d, seed=0):
    """A matrix with the given singular values, in float64."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, len(values), generator=generator).double())[0] for n in (h, d))
    return left @ torch.diag(values.double()) @ right.T


def gaussian(h, d, seed=0):
    """Standard normal entries."""
    return torch.randn(h, d, generator=torch.Generator().manual_seed(seed))


def test_ranks_of_a_known_spectrum():
    """A norm, gap or rank differs from its definition."""
    s = torch.tensor([4.0, 2.0, 2.0, 1.0])
    values = layer_spectrum(with_singular_values(s, 6, 5)).values
    p = (s / s.sum()).double()
    assert values["spectral_norm"] == pytest.approx(4)
    assert values["spectral_gap"] == pytest.approx(2)
    assert values["stable_rank"] == pytest.approx(25 / 16)
    assert values["effective_rank"] == pytest.approx(math.exp(-(p * p.log()).sum().item()))


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float32}, {"floor": 0.0}], ids=["gram", "float32", "svd"])
def test_exponents_of_a_heavy_tail(options):
    """The exponents are not those of the exact eigenvalues."""
    quantiles = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    eigenvalues = quantiles ** (-1 / 1.5)  # density exponent 2.5
    spectrum = layer_spectrum(with_singular_values(eigenvalues.sqrt(), 260, 200), **options)
    assert spectrum.method == {0: "gram-float64", 1: "gram-float32"}.get("dtype" in options, "") or "floor" in options
    assert spectrum.values["alpha_hill"] == pytest.approx(hill_alpha(eigenvalues), abs=2e-3)
    exact = mle_ks_alpha(eigenvalues)
    assert spectrum.values["alpha_ks"] == pytest.approx(exact.alpha, abs=2e-3)
    assert spectrum.values["ks_distance"] == pytest.approx(exact.distance, abs=2e-3)
    assert spectrum.values["mp_distance"] > 0.1


def test_float32_gives_way_where_its_digits_end():
    """An exponent that rests on eigenvalues below 1e-4 of the largest is computed in float32."""
    w = with_singular_values(torch.logspace(0, -6, 60, dtype=torch.float64), 60, 60)
    assert layer_spectrum(w, dtype=torch.float32).method == "gram-float64"
    quick = layer_spectrum(gaussian(80, 60), dtype=torch.float32)
    assert quick.method == "gram-float32"
    assert quick.values["alpha_ks"] == pytest.approx(layer_spectrum(gaussian(80, 60)).values["alpha_ks"], abs=1e-3)


def test_a_floor_below_the_gram_matrix_takes_the_svd():
    """Small singular values of an ill-conditioned matrix come from squared ones."""
    s = torch.logspace(0, -11, 40, dtype=torch.float64)
    spectrum = layer_spectrum(with_singular_values(s, 50, 40), floor=0.0)
    assert spectrum.method == "svd"
    assert torch.allclose(spectrum.eigenvalues, s.square().flip(0), rtol=1e-3, atol=0)
    assert layer_spectrum(with_singular_values(s, 50, 40)).method == "gram-float64"


def test_noise_has_no_spike_and_a_planted_one_is_found():
    """Spikes are counted wrongly, or do not stand apart from the law of the bulk."""
    w = gaussian(300, 200)
    assert layer_spectrum(w).values["spikes"] == 0
    top = math.sqrt(300) + math.sqrt(200)
    assert layer_spectrum(w).values["spectral_norm"] == pytest.approx(top, rel=0.02)
    spiked = w + 60 * torch.outer(nn.functional.normalize(torch.ones(300), dim=0), torch.eye(200)[0])
    assert layer_spectrum(spiked).values["spikes"] == 1
    assert layer_spectrum(spiked).values["mp_distance"] < 0.03


def test_agrees_with_weightwatchers_rules():
    """Cut into slices, a convolution's pooled eigenvalues are not those of its k k matrices."""
    w = torch.randn(12, 10, 3, 3, generator=torch.Generator().manual_seed(0))
    spectrum = layer_spectrum(w, conv="slices")
    pooled = torch.cat([torch.linalg.svdvals(w[:, :, i, j].double()).square() for i in range(3) for j in range(3)])
    assert torch.allclose(spectrum.eigenvalues, pooled.sort().values)
    assert spectrum.shape == (12, 10) and spectrum.values["alpha_ks"] == pytest.approx(mle_ks_alpha(pooled).alpha)
    assert layer_spectrum(w).shape == (12, 90)
    assert torch.allclose(layer_spectrum(w).eigenvalues.flip(0), torch.linalg.svdvals(w.flatten(1).double()).square())


@pytest.mark.parametrize(
    ("weight", "undefined", "reason"),
    [
        (torch.zeros(20, 20), 9, "all weights are 0"),
        (torch.ones(20, 20), 7, "only 1 singular value"),
        (gaussian(30, 5), 6, "only 5 singular values above 0"),
        (gaussian(30, 9) @ gaussian(9, 30, seed=1), 3, "half of the singular values"),
        (torch.linalg.qr(gaussian(30, 30).double())[0], 4, "are equal"),
    ],
    ids=["zero", "rank-1", "small", "low-rank", "orthogonal"],
)
def test_what_is_undefined_is_nan_with_a_reason(weight, undefined, reason):
    """A law is fitted to nothing, to rounding noise or to a handful of numbers."""
    spectrum = layer_spectrum(weight)
    nan = {name for name, value in spectrum.values.items() if math.isnan(value)}
    assert nan == set(spectrum.skipped) and len(nan) == undefined
    assert any(reason in text for text in spectrum.skipped.values())


def model():
    """A convolution, a frozen, a tied, a weight-normed and a small layer, vectors, and two heads."""
    net = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 16, 3),
            "norm": nn.BatchNorm2d(16),
            "embed": nn.Embedding(40, 24),
            "frozen": nn.Linear(24, 30),
            "normed": parametrizations.weight_norm(nn.Linear(30, 20)),
            "head": nn.Linear(24, 40, bias=False),
            "other": nn.Linear(24, 3),
            "gate": nn.Linear(24, 1),
        }
    )
    net["frozen"].requires_grad_(False)
    net["head"].weight = net["embed"].weight
    return net


def test_which_weights_count():
    """A frozen layer is left out, a tied one counted twice, a reparametrised one read before its parametrisation."""
    net, probe = model(), WeightSpectrum()
    values = probe.measure(View(net))
    assert list(probe.spectra) == ["conv", "embed", "frozen", "normed", "other"]
    assert {key.split("/")[1] for key in values} == set(probe.spectra)
    expected = torch.linalg.matrix_norm(net["normed"].weight, 2).item()
    assert values["weight_spectral_norm/normed"] == pytest.approx(expected, rel=1e-6)
    assert set(probe.skipped) == {key for key, value in values.items() if math.isnan(value)}
    tied = WeightSpectrum(["head"]).measure(View(net))  # by its second name
    assert tied["weight_stable_rank/head"] == values["weight_stable_rank/embed"]


def test_long_layers_are_skipped_with_a_reason():
    """A layer that would take minutes is measured, or left out silently."""
    probe = WeightSpectrum(largest=20)
    values = probe.measure(View(model()))
    assert math.isnan(values["weight_alpha_ks/embed"]) and "24, above" in probe.skipped["weight_alpha_ks/embed"]
    assert math.isfinite(values["weight_alpha_ks/normed"])


def test_refuses_bad_models_in_one_line():
    """A missing layer, NaN weights, no weights or an unknown option give a number."""
    net = model()
    for layers, message in ((["convv"], "no weight matrix 'convv' in the model; there are conv"), (["norm"], "norm")):
        with pytest.raises(InvalidInput, match=message):
            WeightSpectrum(layers).measure(View(net))
    net["other"].weight.data[0, 0] = math.nan
    with pytest.raises(InvalidInput, match="'other' has 1 NaN"):
        WeightSpectrum().measure(View(net))
    with pytest.raises(InvalidInput, match="NaN"):
        layer_spectrum(net["other"].weight)
    with pytest.raises(InvalidInput, match="no weight matrix"):
        WeightSpectrum().measure(View(nn.ReLU()))
    for options in ({"dtype": torch.float16}, {"conv": "fft"}, {"floor": -1.0}, {"dtype": "float8"}):
        with pytest.raises(InvalidInput, match="expected float32"):
            WeightSpectrum(**options).measure(View(nn.Linear(20, 20)))


def test_watch_shows_it_by_name_and_as_a_figure():
    """The probe does not work by name, or its figure lacks a layer, the bulk's law or the tail."""
    net = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 20))
    watch = Watch(net, ["weight-spectrum(dtype='float32')"], (torch.zeros(4, 30), torch.zeros(4, dtype=torch.int64)))
    assert watch.measure(0)["weight_spikes/0"] >= 0
    figure = watch.probes[0].figure()
    assert len(figure.axes) == 2
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert "Marchenko-Pastur" in labels and any("exponent" in label for label in labels)
    with pytest.raises(InvalidInput, match="measure before"):
        WeightSpectrum().figure()
