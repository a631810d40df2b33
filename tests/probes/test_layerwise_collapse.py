"""Layer-wise collapse: each layer against the same features extracted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.probes.collapse_in_memory import measure_collapse
from assay.probes.layerwise_collapse import LayerwiseCollapse
from assay.rules.backprop import Backprop
from assay.watch import Watch


def convolutional() -> nn.Sequential:
    """Blocks with maps, in float64 so that comparisons are sharp."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(5, 6, 3)), nn.Flatten(), nn.Linear(24, 3)
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model


def images(n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose brightness tells the class."""
    generator, targets = torch.Generator().manual_seed(1), torch.arange(n) % 3
    return torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64) + targets[:, None, None, None], targets


@pytest.mark.parametrize("pool", ["average", "flatten"])
def test_each_layer_is_measured_as_if_alone(pool: str) -> None:
    """A layer's values are another's, batches are not pooled, or maps are reduced otherwise than said."""
    model, (x, y) = convolutional(), images()
    values = Watch(model, [LayerwiseCollapse(pool=pool)], (x, y), batch_size=17).measure(0)
    h = x
    for name, block in model.named_children():
        with torch.no_grad():
            h = block(h)
        features = h.mean(dim=(2, 3)) if h.ndim == 4 and pool == "average" else h.flatten(1)
        alone = measure_collapse(features, y, num_classes=3)
        for key in ("nc1", "nc1_trace", "nc1_cdnv", "nc2_equinorm", "nc2_etf", "ncc_accuracy"):
            assert values[f"{key}/{name}"] == pytest.approx(alone[key], rel=1e-8), (key, name)
    assert len(values) == 4 * 6


def test_layers_by_name_and_nested_blocks() -> None:
    """A chosen layer is not the one measured, a wrapped network has only one block, or a wrong name passes."""
    model, data = convolutional(), images()
    values = Watch(model, [LayerwiseCollapse(layers=["1.0"])], data).measure(0)
    assert {name.partition("/")[2] for name in values} == {"1.0"}
    wrapped = Watch(nn.Sequential(model), [LayerwiseCollapse()], data).measure(0)
    assert {name.partition("/")[2] for name in wrapped} == {"0.0", "0.1", "0.2", "0.3"}
    with pytest.raises(InvalidInput, match="no layer 'fc'"):
        Watch(model, [LayerwiseCollapse(layers=["fc"])], data).measure(0)
    with pytest.raises(InvalidInput, match="'average' or 'flatten'"):
        LayerwiseCollapse(pool="max")


def test_a_learning_rule_gives_its_blocks() -> None:
    """With a rule, blocks are others than those it trains, or their maps are flattened unasked."""
    model, data = convolutional(), images()
    rule = Backprop(model, loss=nn.CrossEntropyLoss())
    values = Watch(model, [LayerwiseCollapse()], data, rule=rule).measure(0)
    assert {name.partition("/")[2] for name in values} == set(rule.features(data[0]))
    with pytest.raises(InvalidInput, match="leave layers out"):
        Watch(model, [LayerwiseCollapse(layers=["0"])], data, rule=rule).measure(0)


def test_what_is_undefined_is_skipped_by_layer() -> None:
    """A dead layer, a missing class or NaN activations give a silent number, or spoil the other layers."""
    model, (x, y) = convolutional(), images()
    with torch.no_grad():
        model[1][0].weight.zero_()
    watch = Watch(model, [LayerwiseCollapse()], (x, y))
    values = watch.measure(0)
    assert math.isnan(values["nc1/1"]) and "all class means are equal" in watch.skipped["nc1/1"]
    assert math.isfinite(values["nc1/0"])
    with torch.no_grad():
        model[1][0].weight[0, 0, 0, 0] = math.nan
    values = watch.measure(1)
    assert math.isnan(values["ncc_accuracy/1"]) and "NaN" in watch.skipped["ncc_accuracy/1"]
    watch = Watch(model, [LayerwiseCollapse()], (x[y != 2], y[y != 2]))
    assert all(math.isnan(v) for v in watch.measure(0).values()) and "1 of 3 classes" in watch.skipped["nc1/0"]


def test_flattened_maps_need_no_square_of_their_width() -> None:
    """Memory is that of d x d, 20 GB here."""
    model = nn.Sequential(nn.Conv2d(1, 50, 1), nn.Flatten(), nn.Linear(50 * 32 * 32, 3))
    x = torch.randn(9, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    values = Watch(model, [LayerwiseCollapse(pool="flatten")], (x, torch.arange(9) % 3)).measure(0)
    assert math.isfinite(values["nc1/0"])


def test_figure_shows_every_layer() -> None:
    """The figure leaves layers out, or comes before a measurement."""
    probe = LayerwiseCollapse()
    with pytest.raises(InvalidInput, match="call measure first"):
        probe.figure()
    Watch(convolutional(), [probe], images()).measure(0)
    lines = probe.figure().axes[0].get_lines()
    assert [len(line.get_xdata()) for line in lines] == [4, 4]
