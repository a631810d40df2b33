import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

from assay.errors import InvalidInput, UnknownName
from assay.probes.collapse_in_memory import measure_collapse
from assay.probes.neural_collapse import NeuralCollapse
from assay.probes.softmax_collapse import SoftmaxCollapse
from assay.testing._shared import assert_bit_equal
from assay.watch import Watch

ALL = ("neural-collapse", "softmax-collapse", "logit-scaling-alignment")


def network():
    """A network with dropout and batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def data(n=60):
    """Three noisy classes."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(n) % 3
    return torch.randn(n, 6, generator=generator) + F.one_hot(targets, 6), targets


def train(watched, probes=ALL, shuffle_generator=False, steps=12):
    """A usual loop: global random numbers for dropout and order, momentum, measured between backward and step."""
    model, (x, y) = network(), data()
    generator = torch.Generator().manual_seed(3) if shuffle_generator else None
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    watch = Watch(model, probes, loader, every=2) if watched else None
    torch.manual_seed(7)
    step, losses = 0, []
    while step < steps:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            if watch is not None:
                watch.measure(step)
            optimizer.step()
            losses.append(loss.item())
            step += 1
    return {"model": model.state_dict(), "losses": losses, "optimizer": optimizer.state_dict()}, watch


@pytest.mark.parametrize("shuffle_generator", [False, True])
def test_a_watched_run_is_bit_for_bit_the_unwatched_one(shuffle_generator):
    """Measuring on the training loader itself, in mid-step, moves the training run."""
    plain, _ = train(False, shuffle_generator=shuffle_generator)
    watched, watch = train(True, shuffle_generator=shuffle_generator)
    assert_bit_equal(watched, plain, "the run")
    assert len(watch.history.steps) == 6


def test_values_are_those_of_the_network_in_eval_mode():
    """Values come from train mode, from another layer, or from part of the data."""
    model, (x, y) = network().train(), data()
    values = Watch(model, ["neural-collapse"], (x, y), batch_size=7).measure(0)
    reference = copy.deepcopy(model).eval()
    features = reference[:-1](x).detach()
    expected = measure_collapse(features, y, head=reference[-1], scores=reference(x).detach())
    assert values.keys() == expected.keys()
    for key, value in expected.items():
        assert values[key] == pytest.approx(value, rel=1e-5, abs=1e-9), key
    assert model.training


class Pairs:
    """Has inputs and targets, like a Split."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets


@pytest.mark.parametrize("form", ["tensors", "list", "split", "loader", "batches", "generator", "mappings", "workers"])
def test_every_form_of_data_gives_the_same(form):
    """A form of data loses samples, or can be gone through only once."""
    x, y = data()
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    batches = list(zip(x.split(16), y.split(16), strict=True))
    forms = {
        "tensors": (x, y),
        "list": [x, y],
        "split": Pairs(x, y),
        "loader": loader,
        "batches": batches,
        "generator": (pair for pair in batches),
        "mappings": [{"input": a, "labels": b} for a, b in batches],
        "workers": DataLoader(TensorDataset(x, y), batch_size=16, num_workers=1, persistent_workers=True)
        if form == "workers"
        else None,
    }
    model = network()
    expected = Watch(model, data=batches).measure(0)
    watch = Watch(model, data=forms[form], batch_size=16)
    for step in range(2):
        actual = watch.measure(step)
        assert actual.keys() == expected.keys()
        assert all(actual[k] == pytest.approx(v, rel=1e-6, nan_ok=True) for k, v in expected.items())


def test_a_loader_with_persistent_workers_can_be_shared_with_training():
    """Measuring restarts the pass that training is in the middle of."""
    x, y = data()
    loader = DataLoader(TensorDataset(x, y), batch_size=20, num_workers=1, persistent_workers=True)
    watch, seen = Watch(network(), ["softmax-collapse"], loader), []
    for step, (_, targets) in enumerate(loader):
        watch.measure(step)
        seen.append(targets)
    assert torch.equal(torch.cat(seen), y)


def test_one_pass_serves_all_streaming_probes():
    """Each probe costs its own forward pass, or a pass is spent on NC4 although nobody wants it."""
    model, calls = network(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    Watch(model, [NeuralCollapse(nc4=False), SoftmaxCollapse()], data(), batch_size=20).measure(0)
    assert len(calls) == 3
    Watch(model, [NeuralCollapse(), SoftmaxCollapse()], data(), batch_size=20).measure(0)
    assert len(calls) == 3 + 6


def test_every_and_fractional_steps():
    """`every` measures at other steps, or the last, fractional epoch of a budget is not measured."""
    watch = Watch(network(), ["softmax-collapse"], data(), every=3)
    assert [bool(watch.measure(step)) for step in range(7)] == [True, False, False, True, False, False, True]
    assert Watch(network(), ["softmax-collapse"], data()).measure(2.5)


def test_saved_history_goes_on_after_a_restart(tmp_path):
    """A restarted run loses what was measured before."""
    first = Watch(network(), ["softmax-collapse"], data())
    first.measure(0)
    first.save(tmp_path / "watch.json")
    second = Watch(network(), ["softmax-collapse"], data()).load(tmp_path / "watch.json")
    second.measure(1)
    assert [row["step"] for row in second.frame()] == [0, 0, 1, 1]
    assert second.frame()[:2] == first.frame() and len(second.plot().axes) == 2


def test_names_classes_partials_and_objects_are_probes():
    """A way of naming a probe does not work."""
    from functools import partial

    half = partial(SoftmaxCollapse, "float16")
    for probe in ("softmax-collapse(dtype='float16')", half, SoftmaxCollapse("float16")):
        assert Watch(network(), [probe], data()).probes[0].loss_dtype is torch.float16
    assert isinstance(Watch(network(), "softmax-collapse", data()).probes[0], SoftmaxCollapse)
    assert isinstance(Watch(network(), [SoftmaxCollapse], data()).probes[0], SoftmaxCollapse)


class Silent(Metric):
    """No `consumes`."""

    def update(self):
        """Nothing."""

    def compute(self):
        """Nothing."""


@pytest.mark.parametrize(
    "options,error,message",
    [
        ({"data": None}, InvalidInput, "give data"),
        ({"data": 3}, InvalidInput, "not int"),
        ({"data": (torch.ones(3, 6), torch.zeros(2))}, InvalidInput, "3 inputs but 2 targets"),
        ({"data": []}, InvalidInput, "empty"),
        ({"data": [torch.ones(3, 6)]}, InvalidInput, "a batch must be"),
        ({"probes": ["neural-colapse"]}, UnknownName, "neural-collapse"),
        ({"probes": [Silent()]}, InvalidInput, "is no probe"),
        ({"probes": [SoftmaxCollapse(), "softmax-collapse"]}, InvalidInput, "two probes measure softmax_collapse"),
        ({"every": 0}, InvalidInput, "every"),
    ],
)
def test_mistakes_get_one_clear_line(options, error, message):
    """A mistake is silent or fails deep inside."""
    arguments = {"probes": ["softmax-collapse"], "data": data()} | options
    with pytest.raises(error, match=message) as caught:
        Watch(network(), **arguments).measure(0)
    assert "\n" not in str(caught.value)


def test_undefined_values_say_why():
    """A NaN has no reason, or the reason of an earlier measurement stays."""
    x, y = data()
    few = y != 2
    watch = Watch(network(), ["neural-collapse"], (x[few], y[few]))
    assert math.isnan(watch.measure(0)["nc1"]) and "no samples" in watch.skipped["nc1"]
    whole = Watch(network(), ["neural-collapse"], (x, y))
    assert not any(math.isnan(v) for v in whole.measure(0).values()) and not whole.skipped


def test_an_error_while_measuring_leaves_no_trace():
    """After an error the model stays in eval mode."""
    model = network().train()
    with pytest.raises(InvalidInput):
        Watch(model, ["neural-collapse"], [(torch.ones(2, 6), torch.tensor([0, 9]))]).measure(0)
    assert model.training and not any(m._forward_pre_hooks for m in model.modules())


def test_measuring_inside_no_grad_and_inference_mode():
    """A probe that differentiates fails inside a validation hook, where gradients are off."""
    model = network()
    watch = Watch(model, ["logit-scaling-alignment"], data())
    expected = watch.measure(0)
    with torch.no_grad():
        assert watch.measure(1) == expected
    with torch.inference_mode():
        assert watch.measure(2) == expected


class MeanOfLayers(Metric):
    """Reads layers' outputs."""

    consumes = ("activations", "targets")
    full_state_update = False

    def __init__(self, names, key):
        super().__init__()
        self.names, self.key, self.seen = names, key, {}

    def layers(self, view):
        """Return the layers to read."""
        return view.layers(self.names, kinds=(nn.ReLU,))

    def update(self, activations, targets):
        """Keep everything."""
        for name, output in activations.items():
            self.seen.setdefault(name, []).append(output)

    def compute(self):
        """Return the means."""
        return {f"{self.key}/{name}": torch.cat(parts).mean().item() for name, parts in self.seen.items()}


def test_one_forward_pass_serves_layers_too():
    """Probes of layers run their own passes, or get each other's layers."""
    model, (x, y) = network(), data()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    first, second = MeanOfLayers(["0"], "a"), MeanOfLayers(None, "b")
    values = Watch(model, [first, second, "softmax-collapse"], (x, y), batch_size=20).measure(0)
    assert len(calls) == 3 and list(first.seen) == ["0"] and list(second.seen) == ["2"]
    reference = copy.deepcopy(model).eval()
    assert values["a/0"] == pytest.approx(reference[0](x).mean().item(), rel=1e-6)
    assert values["b/2"] == pytest.approx(reference[:3](x).mean().item(), rel=1e-6)
