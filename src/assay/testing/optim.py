"""What every optimizer and every gradient transform must pass.

A factory returns a function of parameters (or parameter groups) that makes the optimizer, or the transform around an
optimizer of its choice. A transform has an attribute `optimizer`, the one to step, and a method `remove()`. An
optimizer that must evaluate the gradients itself has an attribute `needs_closure`, which is true.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.optim.coat_adamw import COATAdamW
from assay.optim.perp_grad import PerpGrad
from assay.testing._optim_cases_adagrad import CASES as ADAGRAD
from assay.testing._optim_cases_dale import CASES as DALE
from assay.testing._optim_cases_first_order import CASES as FIRST_ORDER
from assay.testing._optim_cases_newton import CASES as NEWTON
from assay.testing._optim_cases_noise import CASES as NOISE
from assay.testing._optim_cases_sam import CASES as SAM
from assay.testing._optim_cases_stable_spam import CASES as STABLE_SPAM
from assay.testing._optim_cases_target import CASES as TARGET
from assay.testing._shared import assert_bit_equal, assert_close, copies, global_generators_untouched, seeded

__all__ = ["CASES", "CHECKS"]

Make = Callable[[Any], Any]
Factory = Callable[[], Any]
Batch = tuple[Tensor, Tensor]


def _perp_grad(base: type[torch.optim.Optimizer], **options: Any) -> Factory:
    own = {name: options.pop(name) for name in ("granularity", "rescale") if name in options}
    return lambda: lambda parameters: PerpGrad(base(parameters, **options), **own)


def _coat(**options: Any) -> Factory:
    return lambda: lambda parameters: COATAdamW(parameters, lr=0.01, **options)


CASES: dict[str, Factory] = {
    "coat-adamw": _coat(),
    "coat-adamw-e5m2": _coat(exp_avg_sq_dtype="float8_e5m2", group_size=7),
    "coat-adamw-plain-fp8": _coat(expand=False),
    "coat-adamw-bfloat16": _coat(exp_avg_dtype="bfloat16", exp_avg_sq_dtype="bfloat16"),
    "perp-grad": _perp_grad(torch.optim.SGD, lr=0.1, momentum=0.8),
    "perp-grad-adamw": _perp_grad(torch.optim.AdamW, lr=0.01, weight_decay=0.0),
    "perp-grad-global": _perp_grad(torch.optim.SGD, lr=0.1, granularity="global"),
    "perp-grad-unscaled": _perp_grad(torch.optim.SGD, lr=0.1, rescale=False),
    **ADAGRAD,
    **DALE,
    **NEWTON,
    **NOISE,
    **SAM,
    **STABLE_SPAM,
    **FIRST_ORDER,
    **TARGET,
}


def _model() -> nn.Sequential:
    """Return a small network in float64 with weights of its own generator."""
    generator = seeded()
    model = nn.Sequential(
        nn.utils.skip_init(nn.Linear, 4, 6, dtype=torch.float64),
        nn.Tanh(),
        nn.utils.skip_init(nn.Linear, 6, 3, dtype=torch.float64),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return model


def _batches(count: int) -> list[Batch]:
    generator = seeded(1)
    return [
        (
            torch.randn(8, 4, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def _optimizer(made: Any) -> torch.optim.Optimizer:
    return getattr(made, "optimizer", made)


def _backward(model: nn.Module, batch: Batch) -> Tensor:
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    return loss


def _step(made: Any, gradients: Callable[[], Any], step: Callable[..., Any] | None = None) -> None:
    """Step on the gradients that a function computes: before the step, or inside it where that needs a closure."""
    optimizer = _optimizer(made)
    step = step or optimizer.step
    optimizer.zero_grad()
    if getattr(optimizer, "needs_closure", False):
        step(gradients)
    else:
        gradients()
        step()


def _train(model: nn.Module, made: Any, batches: list[Batch]) -> None:
    for batch in batches:
        _step(made, partial(_backward, model, batch))


def _started(factory: Factory, steps: int = 3) -> tuple[nn.Module, Any]:
    """Return a model and its optimizer or transform in the middle of a run."""
    model = _model()
    made = factory()(model.parameters())
    _train(model, made, _batches(steps))
    return model, made


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _states(made: Any) -> dict[str, Any]:
    """Return the state dicts of the optimizer and, where it has one, of the transform around it."""
    holders = {"optimizer": _optimizer(made)} | ({} if _optimizer(made) is made else {"transform": made})
    return {name: holder.state_dict() for name, holder in holders.items() if hasattr(holder, "state_dict")}


def _restore(made: Any, states: dict[str, Any]) -> None:
    _optimizer(made).load_state_dict(states["optimizer"])
    if "transform" in states:
        made.load_state_dict(states["transform"])


def moves(factory: Factory) -> None:
    """A step changes every parameter and leaves all of them finite."""
    model = _model()
    before = _weights(model)
    _train(model, factory()(model.parameters()), _batches(1))
    for name, after in _weights(model).items():
        assert torch.isfinite(after).all(), f"{name} is not finite after one step"
        assert not torch.equal(after, before[name]), f"{name} did not move"


def resume(factory: Factory) -> None:
    """A run restored from its state dict (through a file) goes on with the same bits."""
    model, made = _started(factory)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), **_states(made)}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    restored = _model()
    restored.load_state_dict(saved.pop("model"))
    again = factory()(restored.parameters())
    _restore(again, saved)
    _train(model, made, _batches(3))
    _train(restored, again, _batches(3))
    assert_bit_equal(_weights(restored), _weights(model), "weights of the resumed run")


def copying(factory: Factory) -> None:
    """A deep copy and a pickled copy of model and optimizer go on with the same bits."""
    model, made = _started(factory)
    made_copies = copies((model, made))
    _train(model, made, _batches(3))
    for way, (other, other_made) in made_copies.items():
        _train(other, other_made, _batches(3))
        assert_bit_equal(_weights(other), _weights(model), f"weights of the {way} copy's run")


def accumulation(factory: Factory) -> None:
    """Gradients accumulated over two half batches give the step of the whole batch."""
    whole, halves = _model(), _model()
    made = factory()(halves.parameters())
    batches = _batches(3)
    _train(whole, factory()(whole.parameters()), batches)

    def in_halves(inputs: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for x, y in zip(inputs.chunk(2), targets.chunk(2), strict=True):
            loss = F.cross_entropy(halves(x), y) / 2
            loss.backward()
            total = total + loss.detach()
        return total

    for batch in batches:
        _step(made, partial(in_halves, *batch))
    for name, weight in _weights(whole).items():
        assert_close(halves.get_parameter(name), weight, f"{name} after accumulation", rtol=1e-9, atol=1e-11)


def closure(factory: Factory) -> None:
    """A step that computes its gradients in a closure is the step with gradients computed before."""
    plain, closed = _model(), _model()
    made = factory()(closed.parameters())
    _train(plain, factory()(plain.parameters()), _batches(2))
    for batch in _batches(2):
        _optimizer(made).zero_grad()
        loss = _optimizer(made).step(partial(_backward, closed, batch))  # type: ignore[arg-type]
        assert loss is not None, "step(closure) must return the closure's loss"
    assert_bit_equal(_weights(closed), _weights(plain), "weights after steps with a closure")


def missing_gradients(factory: Factory) -> None:
    """A parameter without a gradient stays as it is."""
    model = _model()
    made = factory()(model.parameters())
    idle = model.get_parameter("0.weight")
    before = idle.detach().clone()

    def gradients() -> Tensor:
        loss = _backward(model, _batches(1)[0])
        idle.grad = None
        return loss

    _step(made, gradients)
    assert torch.equal(idle, before), "a parameter without a gradient moved"


def zeros(factory: Factory) -> None:
    """Zero gradients and zero weights give no NaN."""
    model = _model()
    made = factory()(model.parameters())
    with torch.no_grad():
        model.get_parameter("2.bias").zero_()

    def gradients() -> Tensor:
        loss = _backward(model, _batches(1)[0])
        model.get_parameter("0.bias").grad.zero_()  # type: ignore[union-attr]
        return loss

    _step(made, gradients)
    for name, weight in _weights(model).items():
        assert torch.isfinite(weight).all(), f"{name} is not finite after a step with zero weights and gradients"


def groups(factory: Factory) -> None:
    """Each parameter group obeys its own learning rate, given at the start or changed later."""
    model = _model()
    frozen, free = model[0], model[2]
    made = factory()([{"params": frozen.parameters(), "lr": 0.0}, {"params": free.parameters()}])
    before = _weights(model)
    _train(model, made, _batches(2))
    after = _weights(model)
    assert torch.equal(after["0.weight"], before["0.weight"]), "a group with lr 0 moved"
    assert not torch.equal(after["2.weight"], before["2.weight"]), "the other group did not move"
    _optimizer(made).param_groups[1]["lr"] = 0.0
    _train(model, made, _batches(1))
    assert torch.equal(model.get_parameter("2.weight"), after["2.weight"]), "setting a group's lr to 0 had no effect"


def scheduler(factory: Factory) -> None:
    """A scheduler of torch drives the learning rate of the steps."""
    model = _model()
    made = factory()(model.parameters())
    optimizer = _optimizer(made)
    start = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    _train(model, made, _batches(1))
    schedule.step()
    assert abs(optimizer.param_groups[0]["lr"] - start / 2) < 1e-12, "the scheduler did not halve the learning rate"
    optimizer.param_groups[0]["lr"] = 0.0
    before = _weights(model)
    _train(model, made, _batches(1))
    assert_bit_equal(_weights(model), before, "weights after a step at lr 0")


def determinism(factory: Factory) -> None:
    """Two runs give the same bits, and no global generator is used."""
    with global_generators_untouched():
        (first, _), (second, _) = _started(factory), _started(factory)
    assert_bit_equal(_weights(second), _weights(first), "weights of a second run")


def compiled(factory: Factory) -> None:
    """A step under `torch.compile` is the same step; graph breaks are allowed."""
    # to float32's precision: a compiled AdamW of torch's own computes its bias corrections in float32
    torch._dynamo.reset()
    plain, model = _model(), _model()
    made = factory()(model.parameters())
    _train(plain, factory()(plain.parameters()), _batches(3))
    step = torch.compile(_optimizer(made).step, backend="eager")
    for batch in _batches(3):
        _step(made, partial(_backward, model, batch), step)
    for name, weight in _weights(plain).items():
        assert_close(model.get_parameter(name), weight, f"{name} after compiled steps", rtol=1e-5, atol=1e-6)


def removal(factory: Factory) -> None:
    """A transform that is removed, also by leaving its `with` block, leaves the plain optimizer; others pass."""
    model, made = _started(factory)
    if _optimizer(made) is made:
        return
    # torch's optimizers drop hooks when copied, so this copy is the plain optimizer in the same state
    plain, plain_optimizer = copy.deepcopy((model, _optimizer(made)))
    with made:
        pass
    made.remove()
    _train(model, made, _batches(2))
    _train(plain, plain_optimizer, _batches(2))
    assert_bit_equal(_weights(model), _weights(plain), "weights after remove()")


CHECKS: dict[str, Callable[[Factory], None]] = {
    "moves": moves,
    "resume": resume,
    "copying": copying,
    "accumulation": accumulation,
    "closure": closure,
    "missing-gradients": missing_gradients,
    "zeros": zeros,
    "groups": groups,
    "scheduler": scheduler,
    "determinism": determinism,
    "compile": compiled,
    "removal": removal,
}
