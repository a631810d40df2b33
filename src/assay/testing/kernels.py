"""What every fused kernel must pass; a factory returns a `Kernel`: the op, its plain reference, a maker of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.kernels.fused_linear_cross_entropy.functional import linear_cross_entropy
from assay.kernels.fused_linear_cross_entropy.op import linear_cross_entropy_rows, linear_cross_entropy_sum
from assay.kernels.fused_linear_cross_entropy.reference import linear_cross_entropy_reference
from assay.testing._kernel import Kernel
from assay.testing._kernel_cases_heads import HEAD_CASES
from assay.testing._kernel_cases_norms import NORM_CASES
from assay.testing._kernel_cases_rational import RATIONAL_CASES
from assay.testing._kernel_cases_rows import ROW_CASES
from assay.testing._shared import assert_bit_equal, assert_close, global_generators_untouched, seeded

__all__ = ["CASES", "CHECKS", "Kernel"]

# Relative error (in norm) of results and gradients against the reference in float64 with the same rounded inputs.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


Factory = Callable[[], Kernel]


def _head(dtype: torch.dtype, generator: torch.Generator, *, bias: bool = False) -> tuple[Tensor, ...]:
    """Hidden states (3, 7, H = 5), weight (V = 13, 5), labels with two ignored, and perhaps a bias."""
    shapes = [(3, 7, 5), (13, 5), *([(13,)] if bias else [])]
    hidden, weight, *rest = (torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    labels = torch.randint(0, 13, (3, 7), generator=generator)
    labels[0, 2] = labels[2, 6] = -100
    return hidden, weight, labels, *rest


def _linear_cross_entropy(*, bias: bool = False, chunk_size: int | None = None, **options: Any) -> Kernel:
    def bound(function: Callable[..., Tensor], **more: Any) -> Callable[..., Tensor]:
        def call(hidden: Tensor, weight: Tensor, labels: Tensor, linear_bias: Tensor | None = None) -> Tensor:
            return function(hidden, weight, labels, linear_bias=linear_bias, **options, **more)

        return call

    def operators(hidden: Tensor, weight: Tensor, labels: Tensor, linear_bias: Tensor | None = None) -> Any:
        shared = (hidden.flatten(0, 1), weight, linear_bias, labels.flatten(), None, -100)
        terms = (options.get("label_smoothing", 0.0), options.get("z_loss", 0.0), options.get("softcap"), 4, None)
        yield linear_cross_entropy_sum, (*shared, *terms, True, True, linear_bias is not None)
        yield linear_cross_entropy_rows, (*shared, *terms)

    return Kernel(
        call=bound(linear_cross_entropy, chunk_size=chunk_size),
        reference=bound(linear_cross_entropy_reference),
        inputs=partial(_head, bias=bias),
        operators=operators,
    )


CASES: dict[str, Factory] = {
    "linear-cross-entropy": _linear_cross_entropy,
    "linear-cross-entropy-sum-bias": lambda: _linear_cross_entropy(bias=True, chunk_size=4, reduction="sum"),
    "linear-cross-entropy-none": lambda: _linear_cross_entropy(bias=True, chunk_size=7, reduction="none"),
    "linear-cross-entropy-options": lambda: _linear_cross_entropy(
        chunk_size=1, label_smoothing=0.1, z_loss=0.01, softcap=2.0
    ),
    **HEAD_CASES,
    **NORM_CASES,
    **RATIONAL_CASES,
    **ROW_CASES,
}


def _inputs(kernel: Kernel, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
    tensors = kernel.inputs(dtype, seeded(seed))
    return tuple(t.requires_grad_() if t.is_floating_point() else t for t in tensors)


def _differentiated(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t for t in tensors if t.requires_grad]


def _value_and_gradients(
    call: Callable[..., Tensor], tensors: Sequence[Tensor], rounding: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return the result and the gradients of a fixed weighted sum of it, with weights exact in a type."""
    value = call(*tensors)
    upstream = torch.linspace(0.5, 3.7, value.numel(), dtype=torch.float64).to(rounding).to(value.dtype)
    upstream = upstream.view(value.shape)
    return [value.detach(), *torch.autograd.grad(value, _differentiated(tensors), upstream)]


def _assert_near(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, what: str) -> None:
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        name = f"{what}: {'the result' if index == 0 else f'gradient {index}'}"
        assert a.shape == b.shape, f"{name} has shape {tuple(a.shape)}, not {tuple(b.shape)}"
        error = float((a.double() - b.double()).norm() / b.double().norm())
        assert error <= tolerance, f"{name} is off by {error:.2g} (relative, in norm), more than {tolerance:g}"


def operators(factory: Factory) -> None:
    """The registered operators have right schemas, fakes and autograd formulas (torch.library.opcheck)."""
    kernel = factory()
    for operator, arguments in kernel.operators(*_inputs(kernel)):
        found = torch.library.opcheck(operator, arguments, raise_exception=False)
        failed = {test: outcome for test, outcome in found.items() if outcome != "SUCCESS"}
        assert not failed, f"opcheck of {operator}: {failed}"


def gradient(factory: Factory) -> None:
    """The gradients in float64 are the finite differences'."""
    kernel = factory()
    tensors = _inputs(kernel, torch.float64)
    passed = torch.autograd.gradcheck(kernel.call, tensors, raise_exception=False)
    assert passed, "the gradient differs from finite differences in float64 (torch.autograd.gradcheck)"


def agreement(factory: Factory) -> None:
    """Results and gradients are the reference's in float64 up to rounding, and gradients have their tensors' dtypes."""
    kernel = factory()
    for dtype, tolerance in TOLERANCES.items():
        for seed in range(3):
            tensors = _inputs(kernel, dtype, seed)
            exact = [
                t.detach().double().requires_grad_() if t.is_floating_point() else t
                for t in kernel.inputs(dtype, seeded(seed))
            ]
            found = _value_and_gradients(kernel.call, tensors, dtype)
            _assert_near(found, _value_and_gradients(kernel.reference, exact, dtype), tolerance, str(dtype))
            for gradient, tensor in zip(found[1:], _differentiated(tensors), strict=True):
                assert gradient.dtype == tensor.dtype, f"{dtype}: a gradient came in {gradient.dtype}"


def single_gradients(factory: Factory) -> None:
    """Each gradient alone is what it is among all of them."""
    kernel = factory()
    tensors = _inputs(kernel)
    together = _value_and_gradients(kernel.call, tensors)
    for index, wanted in enumerate(_differentiated(tensors)):
        alone = [t if t is wanted else t.detach() for t in tensors]
        found = _value_and_gradients(kernel.call, alone)
        _assert_near(found, [together[0], together[1 + index]], 1e-6, f"input {index} alone")


def compiled(factory: Factory) -> None:
    """torch.compile takes it as one graph, with the same results and gradients (backend aot_eager)."""
    kernel = factory()
    tensors = _inputs(kernel)
    torch._dynamo.reset()
    try:
        found = _value_and_gradients(torch.compile(kernel.call, fullgraph=True, backend="aot_eager"), tensors)
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise AssertionError(f"torch.compile(fullgraph=True) failed: {error}") from error
    finally:
        torch._dynamo.reset()
    _assert_near(found, _value_and_gradients(kernel.call, tensors), 1e-6, "compiled")


def autocast(factory: Factory) -> None:
    """Under autocast results and gradients have the reference's dtypes and, up to rounding, its values."""
    kernel = factory()
    tensors = _inputs(kernel)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (_value_and_gradients(call, tensors) for call in (kernel.call, kernel.reference))
    assert [t.dtype for t in found] == [t.dtype for t in expected], "autocast: other dtypes than the reference's"
    _assert_near(found, expected, TOLERANCES[torch.bfloat16], "autocast")


def second_backward(factory: Factory) -> None:
    """With retain_graph a second backward gives the same gradients again, whatever was done to the first ones."""
    kernel = factory()
    tensors = _inputs(kernel)
    total = kernel.call(*tensors).sum() * 3.7
    first = torch.autograd.grad(total, _differentiated(tensors), retain_graph=True)
    kept = [g.clone() for g in first]
    for gradient in first:
        gradient.mul_(2)
    for again in (torch.autograd.grad(total, _differentiated(tensors), retain_graph=keep) for keep in (True, False)):
        assert_bit_equal(list(again), kept, "the gradient of a later backward")


def second_derivative(factory: Factory) -> None:
    """Second derivatives are right, or refused: never silently wrong."""
    kernel = factory()
    tensors = _inputs(kernel, torch.float64)
    try:
        passed = torch.autograd.gradgradcheck(kernel.call, tensors, raise_exception=False)
    except RuntimeError:
        return
    assert passed, "second derivatives differ from finite differences (torch.autograd.gradgradcheck)"


def generators(factory: Factory) -> None:
    """No global random generator is drawn from."""
    kernel = factory()
    tensors = _inputs(kernel)
    with global_generators_untouched():
        _value_and_gradients(kernel.call, tensors)


def inputs_kept(factory: Factory) -> None:
    """The inputs are as they were, forward and backward."""
    kernel = factory()
    tensors = _inputs(kernel)
    before = [t.detach().clone() for t in tensors]
    _value_and_gradients(kernel.call, tensors)
    assert_bit_equal([t.detach() for t in tensors], before, "an input after the call")


def strides(factory: Factory) -> None:
    """Tensors that are not contiguous give the same results and gradients."""
    kernel = factory()
    tensors = _inputs(kernel)
    spread = [torch.stack([t.detach(), torch.zeros_like(t)], -1)[..., 0] for t in tensors]
    spread = [s.requires_grad_() if s.is_floating_point() else s for s in spread]
    assert not any(s.is_contiguous() for s in spread)
    found, expected = _value_and_gradients(kernel.call, spread), _value_and_gradients(kernel.call, tensors)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, "with other strides", rtol=1e-5, atol=1e-6)


CHECKS: dict[str, Callable[[Factory], None]] = {
    "operators": operators,
    "gradient": gradient,
    "agreement": agreement,
    "single-gradients": single_gradients,
    "compiled": compiled,
    "autocast": autocast,
    "second-backward": second_backward,
    "second-derivative": second_derivative,
    "generators": generators,
    "inputs-kept": inputs_kept,
    "strides": strides,
}
