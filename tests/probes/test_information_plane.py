"""The probe around the estimators: it must hand them each layer's activations, whole and unaltered, and say what it skipped."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.probes.information_plane import InformationPlane, compression
from assay.probes.mutual_information import binned_mutual_information, kde_mutual_information
from assay.probes.view import View
from assay.watch import Watch

LABELS = torch.arange(60) % 2


def network(activation=nn.Tanh, **options):
    """Two hidden layers."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), activation(**options), nn.Linear(5, 3), activation(**options), nn.Linear(3, 2)]
    return nn.Sequential(*layers)


def inputs():
    """Sixty samples."""
    return torch.randn(60, 4, generator=torch.Generator().manual_seed(1))


def measured(probe, model, y=LABELS, batch_size=7):
    """One measurement in small batches."""
    return probe.measure(View(model), list(zip(inputs().split(batch_size), y.split(batch_size), strict=True)))


def test_values_are_those_of_the_layers_own_activations():
    """A layer, an option or a batch is mixed up with another."""
    model, x = network(), inputs()
    probe = InformationPlane(estimators=["bins", "fixed_width", "kde_lower"], bins=9, width=0.2, noise_variance=0.05)
    values = measured(probe, model)
    assert len(values) == 2 * 3 * 2
    for layer in (1, 3):
        t = model[: layer + 1](x).detach()
        found = [values[f"i_xt_{e}/{layer}"] for e in ("bins", "fixed_width", "kde_lower")]
        expected = [
            binned_mutual_information(t, LABELS, bins=9).i_xt,
            binned_mutual_information(t, LABELS, "fixed_width", width=0.2).i_xt,
            kde_mutual_information(t, LABELS, noise_variance=0.05, bound="lower").i_xt,
        ]
        assert found == pytest.approx(expected, abs=1e-6)
        assert values[f"i_ty_bins/{layer}"] == pytest.approx(binned_mutual_information(t, LABELS, bins=9).i_ty)


def test_data_processing_inequality_of_a_deterministic_layer_holds():
    """With bins that tell all activations apart, a later layer seems to know more of the input than an earlier one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1), nn.Sigmoid(), nn.Threshold(0.5, 0.0), nn.Linear(1, 2)
    )
    values = measured(InformationPlane(estimators="fixed_width", width=1e-7), model)
    curve = [values[f"i_xt_fixed_width/{layer}"] for layer in (1, 3, 4)]
    assert curve[0] >= curve[1] >= curve[2] and curve[0] > curve[2]


def test_an_in_place_activation_does_not_overwrite_the_layer_before():
    """The output of a linear layer is measured after its ReLU has cut it off."""
    plain, in_place = network(nn.ReLU), network(nn.ReLU, inplace=True)
    layers, estimators = ["0", "1"], ["fixed_width"]
    expected = measured(InformationPlane(layers, estimators), plain)
    assert measured(InformationPlane(layers, estimators), in_place) == expected
    assert expected["i_xt_fixed_width/0"] > expected["i_xt_fixed_width/1"]


def test_layers_that_are_not_there_or_do_not_run_are_refused():
    """A typing error, or an unused layer, measures nothing, silently."""
    with pytest.raises(InvalidInput, match="no layer 'block9'"):
        measured(InformationPlane(["block9"]), network())
    model = network()
    model.spare = nn.Tanh()
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))
    with pytest.raises(InvalidInput, match="'spare' did not run"):
        measured(InformationPlane(), model)


def test_a_shared_activation_is_measured_each_time_it_runs():
    """Of a module that runs twice only one output is seen, and nobody knows which."""
    model = network()
    model.forward = lambda x: model[4](model[1](model[2](model[1](model[0](x)))))
    values = measured(InformationPlane(["1"]), model)
    expected = measured(InformationPlane(), network())
    assert values == {key.replace("/3", "/1#2"): value for key, value in expected.items()}


def test_activations_that_are_not_finite_are_skipped_with_a_reason():
    """NaN falls into a bin."""
    model, probe = network(), InformationPlane(estimators=["bins", "kde_upper"])
    model[2].weight.data[0, 0] = math.nan
    values = measured(probe, model)
    assert math.isfinite(values["i_xt_bins/1"]) and "NaN" in probe.skipped["i_xt_bins/3"]
    assert {key for key, value in values.items() if math.isnan(value)} == probe.skipped.keys() and len(
        probe.skipped
    ) == 4


def test_a_single_class_has_no_information():
    """I(T; Y) of a constant label is 0 and looks like a network that knows nothing."""
    probe = InformationPlane()
    values = measured(probe, network(), y=torch.ones_like(LABELS))
    assert math.isnan(values["i_ty_bins/1"]) and "one class" in probe.skipped["i_ty_bins/1"]
    assert values["i_xt_bins/1"] > 0


def test_without_activation_modules_the_last_features_are_measured():
    """A network with functional activations is not measured at all."""

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    model = Functional()
    t = torch.tanh(model.first(inputs()))
    assert measured(InformationPlane(), model)["i_xt_bins/second"] == binned_mutual_information(t, LABELS).i_xt


def test_a_rules_layers_are_measured_as_the_rule_says():
    """Under a learning rule the model's modules, not what the rule learns with, are measured."""

    class Doubled:
        def __init__(self, model):
            self.model = model

        def predict(self, x):
            return self.model(x)

        def features(self, x):
            return {"a": self.model[:2](x), "b": 2 * self.model[:4](x)}

        def head(self):
            return None

    model = network()
    values = Watch(model, [InformationPlane()], (inputs(), LABELS), rule=Doubled(model)).measure(0)
    expected = binned_mutual_information(2 * model[:4](inputs()), LABELS)
    assert len(values) == 4
    assert (values["i_xt_bins/b"], values["i_ty_bins/b"]) == expected


def test_compression_is_the_way_down_from_the_peak():
    """Each layer's own peak counts, and a curve that only rises has none."""
    assert compression([1.0, 4.0, 3.0, 3.5]) == 0.5 and compression([1.0, 2.0]) == 0.0
    with pytest.raises(InvalidInput):
        compression([])
    model, probe = network(), InformationPlane()
    values = []
    for scale in (1.0, 6.0, 0.2):
        model[0].weight.data = scale * network()[0].weight.data
        values.append(measured(probe, model)["i_xt_bins/1"])
    assert probe.compression()["bins/1"] == max(values) - values[-1] > 0


def test_the_figure_shows_every_layer_in_every_panel():
    """A layer or an estimator is missing from the plane, or its path has not a point per measurement."""
    probe = InformationPlane(estimators=["bins", "range"])
    with pytest.raises(InvalidInput, match="measure first"):
        probe.figure()
    for _ in range(2):
        values = measured(probe, network())
    panels = probe.figure().axes
    assert [p.get_title() for p in panels] == ["bins", "range"]
    paths = [line for line in panels[1].lines if len(line.get_xdata()) == 2]
    assert [line.get_label() for line in paths] == ["1", "3"]
    assert paths[1].get_ydata()[0] == values["i_ty_range/3"]


@pytest.mark.parametrize(
    "options", [{"estimators": []}, {"estimators": ["bin"]}, {"estimators": ["bins", "bins"]}, {"layers": []}]
)
def test_bad_options_are_refused(options):
    """A misspelt estimator is found out after hours of training."""
    with pytest.raises(InvalidInput):
        InformationPlane(**options)


def test_dear_estimators_say_so():
    """A schedule treats a quadratic estimator as a cheap one."""
    assert InformationPlane(estimators=["bins", "kde_upper"]).dear and not InformationPlane().dear
