"""What the study of information-plane adds of its own: the network, fair arms, and what a trial reports of its curves."""

from __future__ import annotations

import math

import pytest
import torch

from assay.papers.information_plane.study import network, study, train
from assay.probes.information_plane import compression
from assay.streams import Streams

ARGUMENTS = {
    "activation": "tanh",
    "widths": [4, 2],
    "batch_size": 512,
    "lr": 5e-3,
    "width": 0.07,
    "noise_variance": 1e-2,
    "kernels": ["kde_upper"],
}


@pytest.mark.parametrize(("activation", "gain", "bias"), [("tanh", 1.0, 0.0), ("relu", 2.0, 0.1)])
def test_networks_start_as_stated(activation, gain, bias):
    """Weights have another variance, or are not cut off at two deviations."""
    model = network(activation, (400, 300), torch.Generator().manual_seed(0))
    weight = model.linear2.weight
    deviation = math.sqrt(gain / 400)
    truncated = 0.7737  # the variance of a standard normal variable cut off at -2 and 2
    assert weight.var().item() == pytest.approx(truncated * deviation**2, rel=0.02)
    assert weight.abs().max() <= 2 * deviation and torch.all(model.linear1.bias == bias)
    assert list(dict(model.named_children()))[-3:] == ["linear2", "hidden2", "head"]


def test_arms_differ_in_what_they_compare_only():
    """Another width, estimator or data set decides."""
    for scale in ("desk", "paper"):
        arms = {name: dict(arm.arguments) for name, arm in study(scale).arms.items()}
        assert arms["tanh"] | {"activation": "relu"} == arms["relu"]
        for name in ("batch_size", "lr", "epochs", "checkpoints"):
            del arms["tanh"][name], arms["tanh-full-batch"][name]
        assert arms["tanh"] == arms["tanh-full-batch"]


def test_a_trial_reports_its_own_curves():
    """Compression, the peak or the errors are read off another curve or epoch."""
    record = train(Streams("t", 0), **ARGUMENTS, epochs=2, checkpoints=[0, 2])
    for estimator in ("bins", "range", "fixed_width", "kde_upper"):
        curve = record.series[f"i_xt_{estimator}/hidden2"]
        assert curve.steps == (0.0, 2.0)
        assert record.metrics[f"compression_{estimator}"] == compression(curve.values)
    known = record.series["i_xt_bins/hidden2"].values
    peak = known.index(max(known))
    assert record.metrics["train_error_at_peak"] == record.series["train_error"].values[peak]
    assert record.metrics["peak_epoch"] == (0.0, 2.0)[peak]
    assert record.metrics["test_accuracy"] == 1 - record.series["test_error"].values[-1]


def test_a_diverged_trial_says_so():
    """NaN is binned."""
    with pytest.raises(FloatingPointError):
        train(Streams("t", 0), **(ARGUMENTS | {"lr": math.inf}), epochs=2, checkpoints=[2])
