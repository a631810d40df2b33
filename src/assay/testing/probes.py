"""What every probe must pass; a factory returns a probe: a `torchmetrics.Metric` or one with `measure(view, batches)`.

The checks measure a small classifier with batch norm, dropout, a frozen layer, gradients and a hook in place.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from assay.probes.logit_scaling import LogitScalingAlignment
from assay.probes.nearest_centre import NearestCentreDisagreement
from assay.probes.neural_collapse import NeuralCollapse
from assay.probes.softmax_collapse import SoftmaxCollapse
from assay.probes.view import View
from assay.testing._probe_bad_input import CHECKS as BAD_INPUT
from assay.testing._probe_cases_collapse import CASES as COLLAPSE
from assay.testing._probe_cases_curvature import CASES as CURVATURE
from assay.testing._probe_cases_domains import CASES as DOMAINS
from assay.testing._probe_cases_ensembles_and_sparsity import CASES as ENSEMBLES_AND_SPARSITY
from assay.testing._probe_cases_generalized import CASES as GENERALIZED
from assay.testing._probe_cases_information import CASES as INFORMATION
from assay.testing._probe_cases_label_noise import CASES as LABEL_NOISE
from assay.testing._probe_cases_li2 import CASES as LI2
from assay.testing._probe_cases_look import CASES as LOOK
from assay.testing._probe_cases_opposing import CASES as OPPOSING
from assay.testing._probe_cases_projection import CASES as PROJECTION
from assay.testing._probe_cases_relaxation import CASES as RELAXATION
from assay.testing._probe_cases_scole import CASES as SCOLE
from assay.testing._probe_cases_spectra import CASES as SPECTRA
from assay.testing._probe_cases_stable_spam import CASES as STABLE_SPAM
from assay.testing._probe_cases_steps import CASES as STEPS
from assay.testing._probe_cases_xor import CASES as XOR
from assay.testing._shared import assert_bit_equal, global_generators_untouched, pickled, seeded
from assay.watch import Watch

__all__ = ["CASES", "CHECKS"]

Factory = Callable[[], Any]
CLASSES, WIDTH, SAMPLES = 3, 6, 48

CASES: dict[str, Factory] = {
    "neural-collapse": NeuralCollapse,
    "neural-collapse-one-pass": lambda: NeuralCollapse(nc4=False),
    "nearest-centre": lambda: NearestCentreDisagreement(torch.eye(CLASSES, WIDTH)),
    "softmax-collapse": SoftmaxCollapse,
    "softmax-collapse-half": lambda: SoftmaxCollapse("float16"),
    "logit-scaling": LogitScalingAlignment,
    **COLLAPSE,
    **CURVATURE,
    **DOMAINS,
    **SPECTRA,
    **XOR,
    **GENERALIZED,
    **LABEL_NOISE,
    **LI2,
    **INFORMATION,
    **OPPOSING,
    **PROJECTION,
    **ENSEMBLES_AND_SPARSITY,
    **LOOK,
    **SCOLE,
    **RELAXATION,
    **STEPS,
    **STABLE_SPAM,
}


def _model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A classifier with everything that a careless probe leaves a trace on; scores wide enough to collapse in half."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, WIDTH), nn.ReLU())
    model.append(nn.Linear(WIDTH, CLASSES))
    generator = seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
    model[0].weight.requires_grad_(False)
    for parameter in list(model.parameters())[2:4]:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    model[2].register_forward_hook(lambda module, args, output: None)
    model[3].eval()
    return model.to(dtype)


def _data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    targets = torch.arange(SAMPLES) % CLASSES
    inputs = torch.randn(SAMPLES, 4, generator=seeded(2), dtype=torch.float64) + 2 * targets[:, None]
    return inputs.to(dtype), targets


def _measured(
    probe: Any, *, data: Any = None, batch_size: int = 512, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    watch = Watch(_model(dtype), [probe], _data(dtype) if data is None else data, batch_size=batch_size)
    return watch.measure(0)


def _assert_alike(actual: dict[str, float], expected: dict[str, float], what: str, tolerance: float) -> None:
    assert actual.keys() == expected.keys(), f"{what}: the quantities differ"
    for key, value in expected.items():
        same = math.isclose(actual[key], value, rel_tol=tolerance, abs_tol=tolerance)
        assert same or (math.isnan(value) and math.isnan(actual[key])), (
            f"{what}: {key} is {actual[key]!r}, not {value!r}"
        )


def _state(model: nn.Module) -> dict[str, Any]:
    """Everything that training would notice, by name."""
    return {
        "state": copy.deepcopy(model.state_dict()),
        "training": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "hooks": [
            sorted(hooks)
            for module in model.modules()
            for name, hooks in sorted(vars(module).items())
            if "_hooks" in name
        ],
        "versions": [t._version for t in (*model.parameters(), *model.buffers())],
        "identities": [id(t) for t in (*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters()))],
    }


def leaves_no_trace(factory: Factory) -> None:
    """Parameters, gradients, buffers, modes, hooks, requires_grad and random states are as before, bit for bit."""
    model = _model()
    watch = Watch(model, [factory()], _data(), batch_size=16)
    before = _state(model)
    with global_generators_untouched():
        watch.measure(0)
    assert_bit_equal(_state(model), before, "the model")


def returns_floats(factory: Factory) -> None:
    """The result maps names to Python floats; each NaN has a reason, and no value is infinite."""
    probe = factory()
    watch = Watch(_model(), [probe], _data())
    values = watch.measure(0)
    assert values, "the probe returned nothing"
    for key, value in values.items():
        assert isinstance(key, str) and type(value) is float, f"{key!r}: {value!r} is no float"
        assert not math.isinf(value), f"{key} is infinite"
        assert not math.isnan(value) or key in watch.skipped, f"{key} is NaN and `skipped` does not say why"


def deterministic(factory: Factory) -> None:
    """Two fresh probes, and one probe twice, measure the same bits, whatever the global seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        watch = Watch(_model(), [factory()], _data(), batch_size=16)
        first = watch.measure(0)
        torch.manual_seed(2)
        assert_bit_equal(watch.measure(1), first, "the same probe again")
        assert_bit_equal(_measured(factory(), batch_size=16), first, "a fresh probe under another global seed")


def any_batches(factory: Factory) -> None:
    """The result does not depend on how samples are cut into batches, one-sample batches included."""
    whole = _measured(factory())
    for size in (1, 7, 16):
        _assert_alike(_measured(factory(), batch_size=size), whole, f"batches of {size}", 1e-5)


def any_order(factory: Factory) -> None:
    """The result does not depend on the order of the samples, even sorted by class."""
    inputs, targets = _data()
    whole = _measured(factory())
    for name, order in (("shuffled", torch.randperm(SAMPLES, generator=seeded(3))), ("sorted", targets.argsort())):
        _assert_alike(_measured(factory(), data=(inputs[order], targets[order]), batch_size=16), whole, name, 1e-5)


def _update(probe: Any, model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    view = View(model)
    for x, y in batches:
        layers = probe.layers(view) if "activations" in probe.consumes else []
        with torch.no_grad():
            observed, activations = view.observe_layers(x, layers)
        seen = {**observed._asdict(), "activations": activations, "targets": y}
        probe.update(**{name: seen[name] for name in probe.consumes})


def halves_merge(factory: Factory) -> None:
    """Streaming: the merged states of two probes that saw half the data each equal one that saw all of it."""
    whole, first, second = factory(), factory(), factory()
    if not isinstance(whole, Metric):
        return
    model, (x, y) = _model().eval(), _data()
    order = y.argsort()  # the halves differ in which classes they saw
    x, y = x[order], y[order]
    batches = list(zip(x.split(8), y.split(8), strict=True))
    _update(whole, model, batches)
    _update(first, model, batches[:3])
    _update(second, model, batches[3:])
    try:
        first.merge_state(second)
    except RuntimeError as error:
        raise AssertionError(
            f"states do not merge; set full_state_update = False or write merge_state: {error}"
        ) from None
    _assert_alike(first.compute(), whole.compute(), "merged halves", 1e-6)


def pickles(factory: Factory) -> None:
    """A pickled probe goes on where it was, in mid-stream where it streams."""
    probe = factory()
    assert_bit_equal(_measured(pickled(probe)), _measured(factory()), "the pickled probe's result")
    if isinstance(probe, Metric):
        model, (x, y) = _model().eval(), _data()
        _update(probe, model, [(x[:24], y[:24])])
        other = pickled(probe)
        for each in (probe, other):
            _update(each, model, [(x[24:], y[24:])])
        assert_bit_equal(other.compute(), probe.compute(), "the result of a probe pickled in mid-stream")


def float32_is_enough(factory: Factory) -> None:
    """A float32 network measures as the same network in float64 does."""
    _assert_alike(_measured(factory()), _measured(factory(), dtype=torch.float64), "float32 against float64", 1e-3)


def refuses_bad_labels(factory: Factory) -> None:
    """Streaming probes that read targets refuse a label out of range in one line, with a ValueError."""
    probe = factory()
    if "targets" not in getattr(probe, "consumes", ()):
        return
    inputs, targets = _data()
    try:
        _measured(probe, data=(inputs, targets + CLASSES))
    except ValueError as error:
        assert "\n" not in str(error), "the error has more than one line"
    else:
        raise AssertionError(f"labels {CLASSES}..{2 * CLASSES - 1} of {CLASSES} classes were accepted")


CHECKS: dict[str, Callable[[Factory], None]] = {
    "leaves-no-trace": leaves_no_trace,
    "returns-floats": returns_floats,
    "deterministic": deterministic,
    "any-batches": any_batches,
    "any-order": any_order,
    "halves-merge": halves_merge,
    "pickles": pickles,
    "float32-is-enough": float32_is_enough,
    "refuses-bad-labels": refuses_bad_labels,
    **BAD_INPUT,
}
