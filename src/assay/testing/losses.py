"""What every criterion on class labels must pass; a factory returns the criterion, an `nn.Module` of (scores, targets).

A criterion with an attribute `reduction` is also checked with each of "mean", "sum" and "none".
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assay.losses.focal import FocalLoss
from assay.losses.rescaled_mse import RescaledMSELoss
from assay.losses.stable_max import StableMaxCrossEntropy
from assay.testing._loss_cases_contrastive import CASES as CONTRASTIVE
from assay.testing._loss_cases_domains import CASES as DOMAINS
from assay.testing._loss_cases_jacobian import CASES as JACOBIAN
from assay.testing._loss_cases_sop import CASES as SOP
from assay.testing._losses_cases_look import CASES as LOOK
from assay.testing._losses_cases_scole import CASES as SCOLE
from assay.testing._losses_cases_tgt import CASES as TGT
from assay.testing._shared import assert_bit_equal, assert_close, global_generators_untouched, pickled, seeded

__all__ = ["CASES", "CHECKS"]

Factory = Callable[[], Any]

CASES: dict[str, Factory] = {
    "focal": FocalLoss,
    "focal-half": lambda: FocalLoss(gamma=0.5),
    "rescaled-mse": RescaledMSELoss,
    "rescaled-mse-weighted": lambda: RescaledMSELoss(target=2.0, alpha=5.0),
    "stable-max": StableMaxCrossEntropy,
    "stable-max-float32": lambda: StableMaxCrossEntropy(upcast=False),
    **DOMAINS,
    **CONTRASTIVE,
    **SOP,
    **LOOK,
    **SCOLE,
    **TGT,
    **JACOBIAN,
}


def _batch(dtype: torch.dtype = torch.float32, samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = seeded()
    scores = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    return scores.to(dtype).requires_grad_(), torch.randint(0, classes, (samples,), generator=generator)


def _value_and_gradient(loss: Callable[..., Tensor], scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(scores, targets)
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    return value.detach(), gradient


def _reduced(loss: Any, reduction: str) -> Any:
    changed = copy.deepcopy(loss)
    changed.reduction = reduction
    return changed


def gradient(factory: Factory) -> None:
    """The gradient in float64 is the finite difference's."""
    loss = factory()
    scores, targets = _batch(torch.float64)
    passed = torch.autograd.gradcheck(lambda z: loss(z, targets), scores, raise_exception=False)
    assert passed, "the gradient differs from finite differences in float64 (torch.autograd.gradcheck)"


def second_gradient(factory: Factory) -> None:
    """Second derivatives in float64 are right, which Hessian probes need."""
    loss = factory()
    scores, targets = _batch(torch.float64)
    passed = torch.autograd.gradgradcheck(lambda z: loss(z, targets), scores, raise_exception=False)
    assert passed, "second derivatives differ from finite differences (torch.autograd.gradgradcheck)"


def reductions(factory: Factory) -> None:
    """The mean and the sum are those of the per-sample losses, and an unknown reduction is refused."""
    loss = factory()
    if not hasattr(loss, "reduction"):
        return
    scores, targets = _batch(torch.float64)
    each = _reduced(loss, "none")(scores, targets)
    assert each.shape == targets.shape, f"reduction 'none' gave shape {tuple(each.shape)}, not (B,)"
    for reduction in ("mean", "sum"):
        total = _reduced(loss, reduction)(scores, targets)
        assert total.ndim == 0, f"reduction {reduction!r} gave shape {tuple(total.shape)}, not a scalar"
        assert_close(total, getattr(each, reduction)(), f"reduction {reduction!r}", rtol=1e-12)


def permutation(factory: Factory) -> None:
    """The order of the samples in a batch does not matter."""
    loss = factory()
    scores, targets = _batch(torch.float64)
    order = torch.randperm(len(targets), generator=seeded(1))
    value, slopes = _value_and_gradient(loss, scores, targets)
    shuffled = scores.detach()[order].requires_grad_()
    other, other_slopes = _value_and_gradient(loss, shuffled, targets[order])
    assert_close(other, value, "loss of a permuted batch", rtol=1e-12)
    assert_close(other_slopes, slopes[order], "gradient of a permuted batch", rtol=1e-12, atol=1e-15)


def inputs_unchanged(factory: Factory) -> None:
    """Scores and targets are as they were after the forward and the backward pass."""
    scores, targets = _batch()
    kept = scores.detach().clone(), targets.clone()
    _value_and_gradient(factory(), scores, targets)
    assert_bit_equal((scores.detach(), targets), kept, "the input (scores, targets)")


def determinism(factory: Factory) -> None:
    """The same input gives the same bits, and no global generator is used."""
    loss = factory()
    scores, targets = _batch()
    with global_generators_untouched():
        first = _value_and_gradient(loss, scores, targets)
        second = _value_and_gradient(loss, scores, targets)
    assert_bit_equal(second, first, "a second evaluation")


def low_precision(factory: Factory) -> None:
    """float32 and bfloat16 scores give floating-point losses close to float64's, and gradients in the scores' type."""
    reference, targets = _batch(torch.float64)
    for dtype, rtol in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        rounded = reference.detach().to(dtype)
        expected, slopes = _value_and_gradient(factory(), rounded.double().requires_grad_(), targets)
        value, gradient = _value_and_gradient(factory(), rounded.requires_grad_(), targets)
        assert gradient.dtype == dtype, f"the gradient of {dtype} scores is {gradient.dtype}"
        assert_close(value, expected, f"loss in {dtype}", rtol=rtol, atol=rtol * 0.1)
        assert_close(gradient, slopes, f"gradient in {dtype}", rtol=rtol, atol=rtol * float(slopes.abs().max()))


def autocast(factory: Factory) -> None:
    """Under bfloat16 autocast, behind a linear layer, loss and gradients are finite and close to float32's."""
    loss = factory()
    inputs, targets = _batch()
    layer = nn.utils.skip_init(nn.Linear, 5, 5)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5, 5, generator=seeded(2)))
        layer.bias.zero_()
    exact, exact_slopes = _value_and_gradient(lambda x, y: loss(layer(x), y), inputs, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(layer(inputs), targets)
    (slopes,) = torch.autograd.grad(value, inputs)
    assert torch.isfinite(value) and torch.isfinite(slopes).all(), "not finite under autocast"
    assert_close(value, exact, "loss under autocast", rtol=5e-2, atol=5e-2)
    assert_close(slopes, exact_slopes, "gradient under autocast", rtol=0.1, atol=0.1 * float(exact_slopes.abs().max()))


def extreme_scores(factory: Factory) -> None:
    """Fits and misfits by a gap of 100 give finite losses and gradients."""
    loss = factory()
    for label in (0, 1):
        scores = torch.tensor([[100.0, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
        value, slopes = _value_and_gradient(loss, scores, torch.tensor([label]))
        finite = torch.isfinite(value) and torch.isfinite(slopes).all()
        assert finite, f"not finite at scores (100, 0, 0, 0, 0), label {label}"


def compiled(factory: Factory) -> None:
    """`torch.compile` captures the whole loss and changes neither value nor gradient."""
    torch._dynamo.reset()
    loss = factory()
    scores, targets = _batch()
    value, slopes = _value_and_gradient(loss, scores, targets)
    try:
        graph = torch.compile(loss, backend="aot_eager", fullgraph=True)
        other, other_slopes = _value_and_gradient(graph, scores, targets)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"torch.compile(fullgraph=True) failed: {str(error).splitlines()[0]}") from error
    assert_close(other, value, "compiled loss", rtol=1e-6)
    assert_close(other_slopes, slopes, "compiled gradient", rtol=1e-5, atol=1e-7)


def per_sample_gradients(factory: Factory) -> None:
    """`vmap(grad(loss))` gives each sample's own gradient."""
    loss = factory()
    scores, targets = _batch(torch.float64)
    each = torch.func.vmap(torch.func.grad(lambda z, y: loss(z[None], y[None])))
    try:
        mapped = each(scores.detach(), targets)
    except RuntimeError as error:
        raise AssertionError(f"vmap(grad(loss)) failed: {str(error).splitlines()[0]}") from error
    for index in range(len(targets)):
        sample = slice(index, index + 1)
        _, alone = _value_and_gradient(loss, scores[sample].detach().requires_grad_(), targets[sample])
        assert_close(mapped[sample], alone, f"vmap gradient of sample {index}", rtol=1e-10, atol=1e-12)


def pickling(factory: Factory) -> None:
    """A copy through pickle gives the same loss."""
    loss = factory()
    scores, targets = _batch()
    assert_bit_equal(pickled(loss)(scores, targets), loss(scores, targets), "the unpickled criterion's loss")


def state_dict(factory: Factory) -> None:
    """A fresh criterion with the state dict of another gives the same loss."""
    loss, fresh = factory(), factory()
    fresh.load_state_dict(loss.state_dict())
    scores, targets = _batch()
    assert_bit_equal(fresh(scores, targets), loss(scores, targets), "the restored criterion's loss")


def bad_input(factory: Factory) -> None:
    """Wrong shapes, float labels and labels out of range are `ValueError`s with a message that names what came."""
    scores, targets = _batch()
    wrong = {
        "scores without a class axis": (scores[:, 0], targets),
        "fewer targets than scores": (scores, targets[:-1]),
        "float targets": (scores, targets.float()),
        "a label equal to the number of classes": (scores, targets.clone().fill_(5)),
        "a negative label": (scores, targets.clone().fill_(-1)),
    }
    for what, (bad_scores, bad_targets) in wrong.items():
        try:
            factory()(bad_scores, bad_targets)
        except ValueError as error:
            assert str(error).strip(), f"{what}: the error has no message"
        except (IndexError, RuntimeError, TypeError) as error:
            raise AssertionError(f"{what}: expected a ValueError, got {type(error).__name__}: {error}") from error
        else:
            raise AssertionError(f"{what} was accepted")


CHECKS: dict[str, Callable[[Factory], None]] = {
    "gradient": gradient,
    "second-gradient": second_gradient,
    "reductions": reductions,
    "permutation": permutation,
    "inputs-unchanged": inputs_unchanged,
    "determinism": determinism,
    "low-precision": low_precision,
    "autocast": autocast,
    "extreme-scores": extreme_scores,
    "compile": compiled,
    "per-sample-gradients": per_sample_gradients,
    "pickling": pickling,
    "state-dict": state_dict,
    "bad-input": bad_input,
}
