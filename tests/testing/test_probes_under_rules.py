"""The matrix on digits: every probe under every learning rule.

Each rule of `assay.testing._rule_settings` takes one tiny step per phase; then one `Watch` measures with all probes.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import assay.probes
import assay.rules
from assay.data.tabular import digits
from assay.lab._parts import build
from assay.lab.experiment import Experiment
from assay.names import resolve
from assay.probes.cluster_axes import ClusterAlignment
from assay.probes.frequencies import FrequencyConcentration
from assay.probes.head_hessian import HeadHessian
from assay.probes.held_out_collapse import HeldOutCollapse
from assay.probes.hessian_spectrum import HessianSpectrum
from assay.probes.hessian_trace import HessianTrace
from assay.probes.linear_probe import LinearProbe
from assay.probes.linear_rule import LinearAgreement
from assay.probes.memorised_labels import LabelMemorisation
from assay.probes.nearest_centre import NearestCentreDisagreement
from assay.probes.neural_collapse import NeuralCollapse
from assay.probes.opposing_signals import OpposingSignals
from assay.rules.rule import Rule
from assay.streams import Streams
from assay.testing._rule_settings import SETTINGS
from assay.watch import Watch

SAMPLES = 64


@dataclass(frozen=True)
class Tried:
    """A rule after a few steps on digits, with what probes may need to know of it."""

    rule: Rule
    data: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]

    @property
    def width(self) -> int:
        """Entries of the features that the head would read."""
        return list(self.rule.features(self.data[0][:2]).values())[-1].flatten(1).shape[1]

    @property
    def first_layer(self) -> tuple[str, nn.Module]:
        """The first layer with a matrix of weights, and its name."""
        modules = self.rule.model.named_modules()
        return next((n, m) for n, m in modules if isinstance(m, nn.Linear | nn.Conv2d))


# What a probe that can't be built from its name alone is given, or one whose default is dear.
ARGUMENTS: dict[str, Callable[[Tried], Any]] = {
    "ClusterAlignment": lambda tried: ClusterAlignment(_axes(tried)),
    "FrequencyConcentration": lambda tried: FrequencyConcentration(4),
    "HeadHessian": lambda tried: HeadHessian(tried.held_out),
    "HeldOutCollapse": lambda tried: HeldOutCollapse(tried.held_out),
    "HessianSpectrum": lambda tried: HessianSpectrum(steps=4),
    "HessianTrace": lambda tried: HessianTrace(draws=2),
    "LabelMemorisation": lambda tried: LabelMemorisation(*tried.held_out, clean=tried.held_out[1].roll(1)),
    "LinearAgreement": lambda tried: LinearAgreement(tried.held_out),
    "LinearProbe": lambda tried: LinearProbe([tried.first_layer[0]], tried.held_out),
    "NearestCentreDisagreement": lambda tried: NearestCentreDisagreement(torch.eye(10, tried.width)),
    "NeuralCollapse": lambda tried: NeuralCollapse(nc4=False),  # NearestCentreDisagreement measures NC4
    "OpposingSignals": lambda tried: OpposingSignals(k=2, lr=0.01),
}


def _axes(tried: Tried) -> Tensor:
    """Return class axes in the space that the layer before the head reads; any where there is no such layer."""
    head = tried.rule.head()
    layers = [m for m in tried.rule.model.modules() if isinstance(m, nn.Linear) and m is not head]
    before = [m for m in layers if head is not None and m.out_features == head.in_features]
    return 1 + torch.eye(10, before[-1].in_features if before else 2)


def _rules() -> set[type]:
    public = (getattr(assay.rules, name) for name in assay.rules.__all__)
    return {part for part in public if inspect.isclass(part) and issubclass(part, Rule) and part is not Rule}


def _probes() -> dict[str, type]:
    public = {name: getattr(assay.probes, name) for name in assay.probes.__all__}
    return {n: c for n, c in public.items() if inspect.isclass(c) and (hasattr(c, "consumes") or hasattr(c, "measure"))}


def _tried(spec: str) -> Tried:
    """Return the rule after one step in each of its phases."""
    experiment = Experiment(data=f"digits(train={SAMPLES})", model=SETTINGS[spec], rule=spec, epochs=1)
    rule = build(experiment, Streams("matrix", 0)).rule
    dataset = digits(train=SAMPLES)
    data, held_out = dataset.train, dataset.validation
    for phase in rule.phases(len(rule.phase_names)):
        rule.train()
        rule.step(data.inputs, data.targets, torch.optim.Adam(phase.parameters, lr=1e-3))
    return Tried(rule, (data.inputs, data.targets), (held_out.inputs[:SAMPLES], held_out.targets[:SAMPLES]))


def _watch(tried: Tried) -> Watch:
    made = [ARGUMENTS[name](tried) if name in ARGUMENTS else cls() for name, cls in _probes().items()]
    return Watch(tried.rule.model, made, tried.data, rule=tried.rule)


def _part(spec: str) -> Any:
    found = resolve("rules", spec)
    return getattr(found, "func", found)


def test_every_rule_has_a_setting() -> None:
    """A new rule would escape the matrix because nobody wrote a line for it."""
    missing = {rule.__name__ for rule in _rules() - {_part(spec) for spec in SETTINGS}}
    assert not missing, f"add {', '.join(sorted(missing))} to assay/testing/_rule_settings.py"


@pytest.mark.parametrize("spec", SETTINGS)
def test_every_probe_measures_under_the_rule_and_leaves_no_trace(spec: str) -> None:
    """A probe would fail under a rule, give NaN without a word, or change what training goes on with."""
    tried = _tried(spec)
    rule = tried.rule
    rule.train()
    state = copy.deepcopy(rule.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in rule.parameters()]
    modes, random = [m.training for m in rule.modules()], torch.get_rng_state()
    watch = _watch(tried)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # power laws of a dozen numbers
        values = watch.measure(0)
    measured = {row["probe"]: row["measurements"] for row in watch.costs()}
    assert len(measured) == len(_probes()) and set(measured.values()) == {1}
    silent = [name for name, value in values.items() if not math.isfinite(value) and not watch.skipped.get(name)]
    assert not silent, f"{', '.join(silent)}: not finite, without a reason in `skipped`"
    assert values.keys() >= {"nc1", "knn_accuracy", "memorised", "weight_movement", "softmax_collapse"}
    assert all(torch.equal(value, state[name]) for name, value in rule.state_dict().items())
    assert modes == [m.training for m in rule.modules()] and torch.equal(random, torch.get_rng_state())
    for parameter, gradient in zip(rule.parameters(), gradients, strict=True):
        same = parameter.grad is gradient if gradient is None else torch.equal(parameter.grad, gradient)
        assert same, "a gradient of training is not what it was"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in rule.modules())
