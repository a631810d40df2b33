"""What every layer must pass; a factory returns a `Layer`: how to build the module, and inputs of odd sizes for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from assay.nn.fp8 import FP8MLP, FP8Linear, FP8RMSNorm
from assay.nn.group_rational import GRKANLayer, GroupRational
from assay.nn.physical_transform import PhysicalTransform
from assay.nn.random_scattering import RandomScattering
from assay.nn.spherical_heads import ClassMeanClassifier, NormalizedLinear
from assay.nn.top_k import TopK, TopKMLP
from assay.testing._nn_cases_four_bit import CASES as FOUR_BIT
from assay.testing._nn_cases_heads import CASES as HEADS
from assay.testing._nn_cases_tract import CASES as TRACT
from assay.testing._shared import assert_bit_equal, assert_close, copies, global_generators_untouched, seeded

__all__ = ["CASES", "CHECKS", "Layer"]


@dataclass(frozen=True)
class Layer:
    """A layer in a tiny setting.

    Args:
        make: Builds the module, its initial weights from a generator (if it draws any).
        shape: Of the one input tensor.
        tolerance: Relative error, in norm, that bfloat16 may cause.
    """

    make: Callable[[torch.Generator], nn.Module]
    shape: tuple[int, ...]
    tolerance: float = 3e-2


Factory = Callable[[], Layer]

# bfloat16 puts some numbers on the other side of a tie of FP8, which has steps of an eighth.
FP8 = 0.15


def _class_means(generator: torch.Generator) -> nn.Module:
    """Return a classifier that has seen every class."""
    head = ClassMeanClassifier(6, 5)
    head(torch.randn(10, 6, generator=generator), torch.arange(10) % 5)
    return head


def _known_system(generator: torch.Generator) -> nn.Module:
    """Return a physical layer whose model is the system itself, so that its gradient is the true one."""
    system = RandomScattering(6, 5, generator=generator)
    return PhysicalTransform(system, 5, model=system, mode="straight-through")


CASES: dict[str, Factory] = {
    "fp8-linear": lambda: Layer(lambda generator: FP8Linear(6, 5, generator=generator), (3, 2, 6), FP8),
    "fp8-mlp": lambda: Layer(lambda generator: FP8MLP(6, 20, generator=generator), (3, 2, 6), FP8),
    "fp8-mlp-gelu": lambda: Layer(
        lambda generator: FP8MLP(6, 20, "gelu", gated=False, bias=True, generator=generator), (7, 6), FP8
    ),
    "fp8-rms-norm": lambda: Layer(lambda generator: FP8RMSNorm(21), (3, 21), FP8),
    "group-rational": lambda: Layer(lambda generator: GroupRational(6, groups=3), (2, 3, 6)),
    "group-rational-separate": lambda: Layer(
        lambda generator: GroupRational(4, groups=2, init="gelu", degrees=(3, 2), share_numerator=False), (5, 4)
    ),
    "gr-kan": lambda: Layer(lambda generator: GRKANLayer(6, 5, groups=2, generator=generator), (3, 2, 6)),
    "gr-kan-identity": lambda: Layer(
        lambda generator: GRKANLayer(4, 3, groups=1, init="identity", bias=False, generator=generator), (7, 4)
    ),
    "top-k": lambda: Layer(lambda generator: TopK(3), (3, 2, 6)),
    "top-k-channels": lambda: Layer(lambda generator: TopK(2, dim=1), (2, 5, 3, 3)),
    "top-k-mlp": lambda: Layer(lambda generator: TopKMLP(5, 12, k=4, generator=generator), (3, 2, 5)),
    "normalized-linear": lambda: Layer(lambda generator: NormalizedLinear(6, 5, generator=generator), (3, 2, 6)),
    "random-scattering": lambda: Layer(lambda generator: RandomScattering(6, 5, generator=generator), (3, 2, 6)),
    "physical-transform": lambda: Layer(_known_system, (7, 6)),
    "class-means": lambda: Layer(_class_means, (4, 6)),
    **{name: partial(Layer, *case) for name, case in (HEADS | TRACT | FOUR_BIT).items()},
}


def _input(layer: Layer, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(layer.shape, generator=seeded(1), dtype=torch.float64).to(dtype).requires_grad_()


def _result_and_gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the result, and the gradients of a fixed weighted sum of it by input and parameters."""
    y = module(x)
    upstream = torch.linspace(0.5, 1.7, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], upstream)]


def _assert_near(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, what: str) -> None:
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        name = f"{what}: {'the result' if index == 0 else f'gradient {index}'}"
        assert a.shape == b.shape, f"{name} has shape {tuple(a.shape)}, not {tuple(b.shape)}"
        error = float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
        assert error <= tolerance, f"{name} is off by {error:.2g} (relative, in norm), more than {tolerance:g}"


def gradient(factory: Factory) -> None:
    """The gradients by input and parameters in float64 are the finite differences'."""
    layer = factory()
    module = layer.make(seeded()).double()
    generator, names = seeded(2), [name for name, _ in module.named_parameters()]
    # Away from kinks at which a parameter may start.
    values = [p.detach() + 0.1 + 0.1 * torch.rand(p.shape, generator=generator) for p in module.parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    tensors = (_input(layer, torch.float64), *(value.requires_grad_() for value in values))
    passed = torch.autograd.gradcheck(call, tensors, raise_exception=False)
    assert passed, "a gradient differs from finite differences in float64 (torch.autograd.gradcheck)"


def state_dict(factory: Factory) -> None:
    """A fresh module with the state of a changed one gives the same result and gradients, bit for bit."""
    layer = factory()
    module, fresh = layer.make(seeded()), layer.make(seeded(3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    fresh.load_state_dict(module.state_dict())
    x = _input(layer)
    assert_bit_equal(_result_and_gradients(fresh, x), _result_and_gradients(module, x), "the restored module")


def copying(factory: Factory) -> None:
    """Copies by deepcopy and pickle give the same result and gradients."""
    layer = factory()
    module, x = layer.make(seeded()), _input(layer)
    for way, copied in copies(module).items():
        assert_bit_equal(_result_and_gradients(copied, x), _result_and_gradients(module, x), f"the copy by {way}")


def determinism(factory: Factory) -> None:
    """The same seed gives the same module, and the same input the same bits; no global generator is drawn from."""
    layer = factory()
    with global_generators_untouched():
        first, second = (_result_and_gradients(layer.make(seeded(5)), _input(layer)) for _ in range(2))
    assert_bit_equal(second, first, "a second module of the same seed")


def inputs_kept(factory: Factory) -> None:
    """The input is as it was, forward and backward."""
    layer = factory()
    x = _input(layer)
    before = x.detach().clone()
    _result_and_gradients(layer.make(seeded()), x)
    assert_bit_equal(x.detach(), before, "the input after the call")


def strides(factory: Factory) -> None:
    """An input that is not contiguous gives the same result and gradients."""
    layer = factory()
    module, x = layer.make(seeded()), _input(layer)
    spread = torch.stack([x.detach(), torch.zeros_like(x)], -1)[..., 0].requires_grad_()
    found, expected = _result_and_gradients(module, spread), _result_and_gradients(module, x)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, "with other strides", rtol=1e-5, atol=1e-6)


def empty(factory: Factory) -> None:
    """A batch without samples gives a result without samples, and gradients of 0."""
    layer = factory()
    module = layer.make(seeded())
    x = torch.empty(0, *layer.shape[1:], requires_grad=True)
    y, of_input, *of_parameters = _result_and_gradients(module, x)
    assert y.shape[0] == 0 and of_input.shape == x.shape, f"an empty batch gave {tuple(y.shape)}"
    assert all(not g.any() for g in of_parameters), "an empty batch gave gradients that are not 0"


def compiled(factory: Factory) -> None:
    """torch.compile takes it as one graph, with the same result and gradients (backend aot_eager)."""
    layer = factory()
    module, x = layer.make(seeded()), _input(layer)
    expected = _result_and_gradients(module, x)
    torch._dynamo.reset()
    try:
        graph = torch.compile(module, backend="aot_eager", fullgraph=True)
        y = graph(x)
        upstream = torch.linspace(0.5, 1.7, y.numel(), dtype=y.dtype).view(y.shape)
        found = [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], upstream)]
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise AssertionError(f"torch.compile(fullgraph=True) failed: {error}") from error
    finally:
        torch._dynamo.reset()
    _assert_near(found, expected, 1e-6, "compiled")


def autocast(factory: Factory) -> None:
    """Under bfloat16 autocast result and gradients are close to float32's, and parameters' gradients are float32."""
    layer = factory()
    module, x = layer.make(seeded()), _input(layer)
    exact = _result_and_gradients(module, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    upstream = torch.linspace(0.5, 1.7, y.numel()).view(y.shape).to(y.dtype)
    found = [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], upstream)]
    _assert_near(found, exact, layer.tolerance, "autocast")
    assert all(g.dtype == torch.float32 for g in found[1:]), "autocast: a gradient is not float32"


def low_precision(factory: Factory) -> None:
    """As a bfloat16 module it takes and gives bfloat16, with values close to float32's."""
    layer = factory()
    module, x = layer.make(seeded()).bfloat16(), _input(layer, torch.bfloat16)
    exact = layer.make(seeded())
    with torch.no_grad():
        for wide, narrow in zip(exact.parameters(), module.parameters(), strict=True):
            wide.copy_(narrow)
    found = _result_and_gradients(module, x)
    expected = _result_and_gradients(exact, x.detach().float().requires_grad_())
    assert all(t.dtype == torch.bfloat16 for t in found), f"bfloat16: came out as {[t.dtype for t in found]}"
    _assert_near(found, expected, layer.tolerance, "bfloat16")


CHECKS: dict[str, Callable[[Factory], None]] = {
    "gradient": gradient,
    "state-dict": state_dict,
    "copying": copying,
    "determinism": determinism,
    "inputs-kept": inputs_kept,
    "strides": strides,
    "empty": empty,
    "compile": compiled,
    "autocast": autocast,
    "low-precision": low_precision,
}
