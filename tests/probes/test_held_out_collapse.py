"""Held-out collapse against the in-memory measurement of features extracted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.probes.class_statistics import class_means
from assay.probes.collapse_in_memory import measure_collapse
from assay.probes.held_out_collapse import HeldOutCollapse
from assay.watch import Watch


def case() -> tuple[nn.Sequential, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A small random network, and training and held-out data about the same means."""
    generator, targets = torch.Generator().manual_seed(0), torch.arange(80) % 4
    means = 2 * torch.randn(4, 5, generator=generator)
    splits = [(means[targets] + torch.randn(80, 5, generator=generator), targets) for _ in range(2)]
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model, splits


def test_means_are_the_training_datas() -> None:
    """Held-out features are measured about their own means, or training features about theirs."""
    model, (train, test) = case()
    values = Watch(model, ["neural-collapse", HeldOutCollapse(test, batch_size=9)], train, batch_size=33).measure(0)
    with torch.no_grad():
        own, features, scores = model[:2](train[0]), model[:2](test[0]), model(test[0])
    expected = measure_collapse(features, test[1], scores=scores, means=class_means(own, train[1], 4))
    for key in ("nc1", "nc1_trace", "nc1_cdnv", "nc4", "ncc_accuracy"):
        assert values[f"test_{key}"] == pytest.approx(expected[key], rel=1e-5), key
    assert values["test_nc1"] != values["nc1"]


def test_training_data_held_out_give_the_training_values() -> None:
    """On the same data the two probes differ."""
    model, (train, _) = case()
    values = Watch(model, ["neural-collapse", HeldOutCollapse(train, prefix="again")], train).measure(0)
    for key in ("nc1", "nc1_trace", "nc1_cdnv", "nc4", "ncc_accuracy"):
        assert values[f"again_{key}"] == pytest.approx(values[key], rel=1e-4), key


def test_missing_classes_and_bad_labels() -> None:
    """Means of a class without training samples give numbers, or labels out of range pass."""
    model, (train, test) = case()
    few = train[0][train[1] > 0], train[1][train[1] > 0]
    watch = Watch(model, [HeldOutCollapse(test)], few)
    assert all(math.isnan(value) for value in watch.measure(0).values())
    assert "1 of 4 classes" in watch.skipped["test_nc1"] and "1 of 4 classes" in watch.skipped["test_nc4"]
    watch = Watch(model, [HeldOutCollapse((test[0][test[1] > 0], test[1][test[1] > 0]))], train)
    values = watch.measure(0)
    assert math.isfinite(values["test_nc1"]) and math.isnan(values["test_nc1_cdnv"])
    assert "test_nc1_cdnv" in watch.skipped
    with pytest.raises(InvalidInput, match="labels must lie in"):
        Watch(model, [HeldOutCollapse((test[0], test[1] + 1))], train).measure(0)
