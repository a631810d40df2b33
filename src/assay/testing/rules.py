"""What every learning rule must pass: gradients, locality, phases, prediction without a trace, state, learning.

A factory returns a `RuleCase`: a rule on a tiny model and a batch that it can learn. Two calls must give equal cases.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn

from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.rules.backprop import Backprop
from assay.rules.cascaded_forward import CascadedForward
from assay.rules.fitting import fit
from assay.rules.forward_forward import ForwardForward
from assay.rules.mono_forward import MonoForward
from assay.rules.rule import Rule
from assay.testing._rule_cases_boosting import BOOSTING_CASES
from assay.testing._rule_cases_counter_current import COUNTER_CURRENT_CASES
from assay.testing._rule_cases_equilibrium import CASES as EQUILIBRIUM_CASES
from assay.testing._rule_cases_noprop import NOPROP_CASES
from assay.testing._rule_cases_physical import PHYSICAL_CASES
from assay.testing._rule_cases_projections import PROJECTION_CASES

__all__ = ["CASES", "CHECKS", "RuleCase", "two_blobs"]


@dataclass(frozen=True)
class RuleCase:
    """A rule in a tiny setting.

    Args:
        rule: The rule, new and in training mode.
        inputs: A batch (N, ...) that the rule can learn, N at least 8.
        targets: int64 (N,).
        epochs: Epochs of mini-batches of 32 with Adam at 1e-2 after which more than 95 % must be right.
        limit: A network on the rule's own parameters whose ordinary cross-entropy gradient the rule must give, for
            rules that have such a limit.
    """

    rule: Rule
    inputs: Tensor
    targets: Tensor
    epochs: int = 10
    limit: nn.Module | None = None


Factory = Callable[[], object]


def two_blobs(*shape: int, samples: int = 128) -> tuple[Tensor, Tensor]:
    """Return inputs (samples, *shape) of two Gaussian classes with means -1 and 1 and deviation 1/2, and labels."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(samples) % 2
    noise = torch.randn(samples, *shape, generator=generator) / 2
    return noise + (2.0 * targets - 1).view(-1, *[1] * len(shape)), targets


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _on_mlp(make: Callable[..., Rule], depth: int = 2, epochs: int = 10) -> RuleCase:
    rule = make(MLP((16,), 2, width=12, depth=depth, generator=_generator()))
    return RuleCase(rule, *two_blobs(16), epochs=epochs)


def _on_cnn(make: Callable[..., Rule], epochs: int = 10) -> RuleCase:
    rule = make(CNN((1, 8, 8), 2, channels=(4, 6), generator=_generator()))
    return RuleCase(rule, *two_blobs(1, 8, 8), epochs=epochs)


def _backprop() -> RuleCase:
    case = _on_mlp(Backprop)
    return RuleCase(case.rule, case.inputs, case.targets, limit=case.rule.model)


def _one_block_mono_forward() -> RuleCase:
    case = _on_mlp(partial(MonoForward, num_classes=2, generator=_generator(2)), depth=1)
    rule = cast(MonoForward, case.rule)
    limit = nn.Sequential(rule.layers[0], rule.projections[0])
    return RuleCase(rule, case.inputs, case.targets, limit=limit)


def _one_block_cascaded_forward() -> RuleCase:
    make = partial(CascadedForward, num_classes=2, features="dfa", generator=_generator(2))
    case = _on_mlp(make, depth=1)
    rule = cast(CascadedForward, case.rule)
    return RuleCase(rule, case.inputs, case.targets, limit=nn.Sequential(rule.blocks.modules[0], rule.top))


_mono = partial(MonoForward, num_classes=2)
_cascaded = partial(CascadedForward, num_classes=2)

CASES: dict[str, Factory] = {
    "backprop": _backprop,
    "backprop-cnn": lambda: _on_cnn(Backprop),
    "mono-forward": lambda: _on_mlp(partial(_mono, generator=_generator(2))),
    "mono-forward-one-block": _one_block_mono_forward,
    "mono-forward-sequential": lambda: _on_mlp(
        partial(_mono, generator=_generator(2), schedule="sequential", project_input=True), epochs=24
    ),
    "mono-forward-cnn": lambda: _on_cnn(
        partial(_mono, generator=_generator(2), schedule="sequential", readout="sum"), epochs=12
    ),
    "forward-forward": lambda: _on_mlp(
        partial(ForwardForward, num_classes=2, generator=_generator(2)), depth=3, epochs=40
    ),
    "cascaded-forward-random": lambda: _on_cnn(partial(_cascaded, generator=_generator(2)), epochs=12),
    "cascaded-forward-dfa": lambda: _on_cnn(partial(_cascaded, generator=_generator(2), features="dfa"), epochs=12),
    "cascaded-forward-one-block": _one_block_cascaded_forward,
    **NOPROP_CASES,
    **EQUILIBRIUM_CASES,
    **PROJECTION_CASES,
    **COUNTER_CURRENT_CASES,
    **PHYSICAL_CASES,
    **BOOSTING_CASES,
}


def _case(factory: Factory) -> RuleCase:
    case = factory()
    assert isinstance(case, RuleCase), f"the factory must return a RuleCase, not {type(case).__name__}"
    return case


def _gradients(rule: Rule) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in rule.named_parameters() if p.grad is not None}


def _parameters(rule: Rule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in rule.named_parameters()}


def _different(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [name for name in a.keys() | b.keys() if name not in a or name not in b or not torch.equal(a[name], b[name])]


def _phase_by_phase(rule: Rule) -> Iterator[str]:
    for phase in rule.phases(len(rule.phase_names)):
        rule.train()
        yield phase.name


def backward_accumulates(factory: Factory) -> None:
    """Two backward calls without clearing in between add up."""
    case = _case(factory)
    once, twice = case.rule, copy.deepcopy(case.rule)
    for _ in zip(_phase_by_phase(once), _phase_by_phase(twice), strict=True):
        parts = []
        for _ in range(2):
            once.zero_grad(set_to_none=True)
            once.backward(case.inputs, case.targets)
            twice.backward(case.inputs, case.targets)
            parts.append(_gradients(once))
        for name, total in _gradients(twice).items():
            expected = torch.stack([part[name] for part in parts if name in part]).sum(0)
            close = torch.allclose(total, expected, rtol=1e-5, atol=1e-7)
            assert close, f"{name}: two backward calls do not add up in phase {once.phase!r}"


def gradients_go_to_trained_parameters(factory: Factory) -> None:
    """In each phase exactly `trained_parameters()` get a gradient, and losses come back detached."""
    case = _case(factory)
    for phase in _phase_by_phase(case.rule):
        logs = case.rule.backward(case.inputs, case.targets)
        assert "loss" in logs, "backward must return a 'loss'"
        assert not any(value.requires_grad for value in logs.values()), "backward must return detached values"
        trained = {id(p) for p in case.rule.trained_parameters()}
        wrong = [name for name, p in case.rule.named_parameters() if (p.grad is not None) != (id(p) in trained)]
        assert not wrong, f"phase {phase!r}: gradients and trained_parameters() disagree on {', '.join(wrong)}"


def blocks_are_local(factory: Factory) -> None:
    """Where a rule says it is local, noise on later blocks leaves a block's gradient bit-equal, and x gets none."""
    rule = _case(factory).rule
    if not rule.local:
        return
    for phase in _phase_by_phase(rule):
        for k in range(len(rule.groups())):
            case = _case(factory)
            case.rule.load_state_dict(rule.state_dict())
            reference, disturbed = case.rule, copy.deepcopy(case.rule)
            with torch.no_grad():
                for group in disturbed.groups()[k + 1 :]:
                    for parameter in group:
                        parameter.add_(torch.randn(parameter.shape, generator=_generator(k)))
            x = case.inputs.clone().requires_grad_()
            reference.backward(x, case.targets)
            disturbed.backward(x, case.targets)
            assert x.grad is None, "a local rule must not send gradients to its input"
            for a, b in zip(reference.groups()[k], disturbed.groups()[k], strict=True):
                both = a.grad is not None and b.grad is not None
                same = torch.equal(a.grad, b.grad) if both else a.grad is b.grad  # type: ignore[arg-type]
                assert same, f"phase {phase!r}: group {k}'s gradient depends on later groups"


def prediction_leaves_no_trace(factory: Factory) -> None:
    """Predict and features change no mode, gradient, buffer or random state, and give the same twice."""
    case = _case(factory)
    rule = case.rule
    rule.backward(case.inputs, case.targets)
    list(rule.model.modules())[-1].eval()
    modes, gradients = [m.training for m in rule.modules()], _gradients(rule)
    state, random = copy.deepcopy(rule.state_dict()), torch.get_rng_state()
    scores = [rule.predict(case.inputs) for _ in range(2)]
    features = [rule.features(case.inputs) for _ in range(2)]
    assert modes == [m.training for m in rule.modules()], "predict or features changed the training mode"
    assert not _different(gradients, _gradients(rule)), "predict or features changed .grad"
    assert not _different(state, rule.state_dict()), "predict or features changed the rule's state"
    assert torch.equal(random, torch.get_rng_state()), "predict or features used the global generator"
    classes = int(case.targets.max()) + 1
    assert scores[0].shape == (len(case.inputs), classes), f"predict gave shape {tuple(scores[0].shape)}"
    assert not scores[0].requires_grad, "predict must not build a graph"
    if not rule.stochastic_predict:
        assert torch.equal(*scores), "predict gives different scores for the same input"
        assert not _different(*features), "features differ for the same input"


def head_reads_last_features(factory: Factory) -> None:
    """`head()` applied to the last features gives the predicted scores."""
    case = _case(factory)
    head = case.rule.head()
    if head is None:
        return
    last = list(case.rule.features(case.inputs).values())[-1]
    with torch.no_grad():
        scores = head(last.flatten(1))
    same = torch.allclose(scores, case.rule.predict(case.inputs), atol=1e-6)
    assert same, "head() of the last features is not what predict returns"


def _through_files(state: dict[str, Tensor], others: object) -> tuple[dict[str, Tensor], Any]:
    """Write tensors as safetensors and the rest by torch.save, and return what the files hold."""
    from safetensors.torch import load_file, save_file

    with TemporaryDirectory() as folder:
        weights, rest = f"{folder}/rule.safetensors", f"{folder}/rest.pt"
        try:
            save_file(state, weights)
        except (RuntimeError, ValueError) as error:
            raise AssertionError(f"the state can't be stored as safetensors: {error}") from None
        torch.save((state, others), rest)
        loaded, plain = load_file(weights), torch.load(rest, weights_only=True)
    assert not _different(loaded, plain[0]), "safetensors and torch.save give different states"
    return loaded, plain[1]


def state_resumes_bit_equal(factory: Factory) -> None:
    """A rule and its optimizer, loaded from files in mid-epoch, make the same next steps, in every phase."""
    case = _case(factory)
    half = (len(case.inputs) + 1) // 2
    (x, z), (y, w) = case.inputs.split(half), case.targets.split(half)
    rule = case.rule
    for phase in rule.phases(len(rule.phase_names)):
        optimizer = torch.optim.Adam(phase.parameters, lr=1e-2)
        rule.train()
        rule.step(x, y, optimizer)
        assert all(isinstance(v, Tensor) for v in rule.state_dict().values()), "the state must consist of tensors"
        state, its = _through_files(rule.state_dict(), optimizer.state_dict())
        resumed = _case(factory).rule
        resumed.load_state_dict(state)
        assert resumed.phase == phase.name, f"the phase is lost: {resumed.phase!r} instead of {phase.name!r}"
        its_optimizer = torch.optim.Adam(resumed.trained_parameters(), lr=1e-2)
        its_optimizer.load_state_dict(its)
        for inputs, targets in ((z, w), (x, y)):
            rule.step(inputs, targets, optimizer)
            resumed.step(inputs, targets, its_optimizer)
        different = _different(rule.state_dict(), resumed.state_dict())
        assert not different, f"phase {phase.name!r}: the resumed step differs in {', '.join(different)}"


class _Interrupted(Exception):
    """Ends a run in the middle of an epoch."""


def fit_resumes_bit_equal(factory: Factory) -> None:
    """`fit` that is ended in mid-epoch and started again from its checkpoint ends as one that was never ended."""
    whole, broken, again = (_case(factory) for _ in range(3))
    half = (len(whole.inputs) + 1) // 2
    data = list(zip(whole.inputs.split(half), whole.targets.split(half), strict=True))
    epochs = len(whole.rule.phase_names) + 1
    passes = iter(range(epochs))

    def interrupted() -> Iterator[tuple[Tensor, Tensor]]:
        yield data[0]
        if next(passes) == epochs // 2:
            raise _Interrupted
        yield from data[1:]

    with TemporaryDirectory() as folder:
        run = partial(fit, epochs=epochs, checkpoint=f"{folder}/run.pt")
        with suppress(_Interrupted):
            run(broken.rule, interrupted)
        resumed = run(again.rule, data)
    assert fit(whole.rule, data, epochs=epochs) == resumed, "the resumed run has another history"
    different = _different(dict(whole.rule.state_dict()), dict(again.rule.state_dict()))
    assert not different, f"the resumed run ends with other values in {', '.join(different)}"


def phases_leave_others_alone(factory: Factory) -> None:
    """With one optimizer over all parameters, a phase moves its own and no others."""
    case = _case(factory)
    rule = case.rule
    optimizer = torch.optim.SGD(rule.parameters(), lr=1e-2, momentum=0.9)
    for phase in _phase_by_phase(rule):
        before, trained = _parameters(rule), {id(p) for p in rule.trained_parameters()}
        for _ in range(2):
            rule.step(case.inputs, case.targets, optimizer)
        moved = {name for name in _different(before, _parameters(rule))}
        strangers = moved - {name for name, p in rule.named_parameters() if id(p) in trained}
        assert moved, f"phase {phase!r} trains nothing"
        assert not strangers, f"phase {phase!r} moved {', '.join(strangers)}"


def global_generator_is_untouched(factory: Factory) -> None:
    """Training draws from the rule's own generator only."""
    case = _case(factory)
    before = torch.get_rng_state()
    for _ in _phase_by_phase(case.rule):
        case.rule.backward(case.inputs, case.targets)
        case.rule.after_step()
    assert torch.equal(before, torch.get_rng_state()), "the rule used torch's global generator"


def same_seed_same_step(factory: Factory) -> None:
    """Two rules built alike take the same step."""
    results = []
    for _ in range(2):
        case = _case(factory)
        case.rule.step(case.inputs, case.targets, torch.optim.SGD(case.rule.parameters(), lr=0.1))
        results.append(dict(case.rule.state_dict()))
    different = _different(*results)
    assert not different, f"two equal rules differ after one step in {', '.join(different)}"


def pickles(factory: Factory) -> None:
    """A pickled rule predicts and trains as the original does."""
    case = _case(factory)
    twin: Rule = pickle.loads(pickle.dumps(case.rule))
    assert torch.equal(twin.predict(case.inputs), case.rule.predict(case.inputs)), "predictions differ after pickling"
    for rule in (case.rule, twin):
        rule.backward(case.inputs, case.targets)
    assert not _different(_gradients(case.rule), _gradients(twin)), "gradients differ after pickling"


def learns_two_blobs(factory: Factory) -> None:
    """More than 95 % of the case's own batch is right after its epochs."""
    case = _case(factory)
    data = list(zip(case.inputs.split(32), case.targets.split(32), strict=True))
    fit(case.rule, data, epochs=case.epochs, optimizer=partial(torch.optim.Adam, lr=1e-2))
    accuracy = (case.rule.predict(case.inputs).argmax(-1) == case.targets).float().mean().item()
    assert accuracy > 0.95, f"accuracy {accuracy:.3f} after {case.epochs} epochs on two separable blobs"


def limit_equals_backprop(factory: Factory) -> None:
    """Where a limit is given, the rule's gradients are those of backpropagation through it."""
    case = _case(factory)
    if case.limit is None:
        return
    case.rule.backward(case.inputs, case.targets)
    found = _gradients(case.rule)
    case.rule.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(case.limit(case.inputs), case.targets).backward()
    expected = _gradients(case.rule)
    assert found.keys() == expected.keys(), f"the limit trains {sorted(expected)}, the rule {sorted(found)}"
    for name in found:
        assert torch.allclose(found[name], expected[name], atol=1e-7), f"{name}: not the gradient of backpropagation"


CHECKS: dict[str, Callable[[Factory], None]] = {
    "backward-accumulates": backward_accumulates,
    "gradients-go-to-trained-parameters": gradients_go_to_trained_parameters,
    "blocks-are-local": blocks_are_local,
    "prediction-leaves-no-trace": prediction_leaves_no_trace,
    "head-reads-last-features": head_reads_last_features,
    "state-resumes-bit-equal": state_resumes_bit_equal,
    "fit-resumes-bit-equal": fit_resumes_bit_equal,
    "phases-leave-others-alone": phases_leave_others_alone,
    "global-generator-is-untouched": global_generator_is_untouched,
    "same-seed-same-step": same_seed_same_step,
    "pickles": pickles,
    "learns-two-blobs": learns_two_blobs,
    "limit-equals-backprop": limit_equals_backprop,
}
