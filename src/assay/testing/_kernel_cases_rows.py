"""Tiny settings of gated activations, cross-entropy and divergences for the kernels' checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.kernels.divergence.functional import jsd, kl_div
from assay.kernels.divergence.op import divergence, divergence_backward
from assay.kernels.divergence.reference import jsd_reference, kl_div_reference
from assay.kernels.fused_linear_jsd.functional import linear_jsd
from assay.kernels.fused_linear_jsd.op import linear_jsd_rows, linear_jsd_sum
from assay.kernels.fused_linear_jsd.reference import linear_jsd_reference
from assay.kernels.gated_activations.functional import geglu, swiglu
from assay.kernels.gated_activations.op import gated_activation, gated_activation_backward
from assay.kernels.gated_activations.reference import geglu_reference, swiglu_reference
from assay.kernels.row_cross_entropy.functional import cross_entropy
from assay.kernels.row_cross_entropy.op import cross_entropy_rows, cross_entropy_rows_, cross_entropy_rows_backward
from assay.kernels.row_cross_entropy.reference import cross_entropy_reference
from assay.testing._kernel import Kernel

__all__ = ["ROW_CASES"]


def _normal(shapes: list[tuple[int, ...]], dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)


def _gated(function: Callable[..., Tensor], reference: Callable[..., Tensor], activation: str) -> Kernel:
    def operators(a: Tensor, b: Tensor) -> Any:
        yield gated_activation, (a[0], b[0], activation, False)
        yield gated_activation_backward, (a[0].detach(), a[1].detach(), b[0].detach(), activation, False)

    inputs = partial(_normal, [(2, 5, 7), (2, 5, 7)])
    return Kernel(call=function, reference=reference, inputs=inputs, operators=operators)


def _scores(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Logits (3, 7, V = 13), and labels of which two are ignored."""
    labels = torch.randint(0, 13, (3, 7), generator=generator)
    labels[0, 2] = labels[2, 6] = -100
    return (*_normal([(3, 7, 13)], dtype, generator), labels)


def _cross_entropy(*, in_place: bool = False, **options: Any) -> Kernel:
    def call(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits.clone() if in_place else logits, labels, in_place=in_place, **options)

    def operators(logits: Tensor, labels: Tensor) -> Any:
        terms = (-100, options.get("label_smoothing", 0.0), options.get("z_loss", 0.0), options.get("softcap"))
        shared = (labels.flatten(), None, *terms)
        yield cross_entropy_rows, (logits.flatten(0, 1), *shared)
        yield cross_entropy_rows_, (logits.detach().flatten(0, 1), *shared)
        yield cross_entropy_rows_backward, (torch.ones(21), logits.detach().flatten(0, 1), *shared)

    return Kernel(call=call, reference=partial(cross_entropy_reference, **options), inputs=_scores, operators=operators)


def _log_probabilities(dtype: torch.dtype, generator: torch.Generator, *, count: int = 2) -> tuple[Tensor, ...]:
    """Log-probabilities (3, 5, V = 11) of students and teachers."""
    drawn = _normal([(3, 5, 11)] * count, torch.float64, generator)
    return tuple(logits.log_softmax(-1).to(dtype) for logits in drawn)


def _kl_div(**options: Any) -> Kernel:
    def bound(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        # Probabilities are made from the logarithms within, so that finite differences stay probabilities.
        def call(input: Tensor, target: Tensor) -> Tensor:
            return function(input, target if options.get("log_target") else target.exp(), **options)

        return call

    def operators(input: Tensor, target: Tensor) -> Any:
        per_class = options.get("reduction") == "none"
        yield divergence, (input[0], target[0], 0.0, True, per_class)
        yield divergence, (input[0], target.detach()[0].exp(), 0.0, False, per_class)

    return Kernel(bound(kl_div), bound(kl_div_reference), _log_probabilities, operators)


def _jsd(**options: Any) -> Kernel:
    def operators(input: Tensor, target: Tensor) -> Any:
        beta, (x, t) = options["beta"], (input.detach()[0], target.detach()[0])
        yield divergence, (input[0], target[0], beta, True, False)
        yield divergence_backward, (torch.ones(5, 1), x, t, beta, True, True, True)
        yield divergence_backward, (torch.ones(5, 1), x, t, beta, True, True, False)

    return Kernel(partial(jsd, **options), partial(jsd_reference, **options), _log_probabilities, operators)


def _linear_jsd(*, bias: bool = False, chunk_size: int | None = None, **options: Any) -> Kernel:
    """A student (H = 5) with V = 13 classes; the teacher (G = 3), which gets no gradients, is made of sines."""

    def teacher(like: Tensor) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(21 * 3 + 13 * 3, dtype=torch.float64).sin()
        return tuple(t.to(like.dtype) for t in (numbers[:63].view(3, 7, 3), numbers[63:].view(13, 3)))  # type: ignore[return-value]

    def bound(function: Callable[..., Tensor], **more: Any) -> Callable[..., Tensor]:
        def call(hidden: Tensor, weight: Tensor, linear_bias: Tensor | None = None) -> Tensor:
            return function(hidden, weight, *teacher(hidden), linear_bias=linear_bias, **options, **more)

        return call

    def operators(hidden: Tensor, weight: Tensor, linear_bias: Tensor | None = None) -> Any:
        seen, teacher_weight = teacher(hidden)
        terms = (None, options.get("beta", 0.5), options.get("temperature", 1.0), 4, None)
        shared = (hidden.flatten(0, 1), weight, linear_bias, seen.flatten(0, 1), teacher_weight, None, *terms)
        yield linear_jsd_sum, (*shared, True, True, linear_bias is not None)
        yield linear_jsd_rows, shared

    inputs = partial(_normal, [(3, 7, 5), (13, 5), *([(13,)] if bias else [])])
    return Kernel(bound(linear_jsd, chunk_size=chunk_size), bound(linear_jsd_reference), inputs, operators)


ROW_CASES: dict[str, Callable[[], Kernel]] = {
    "swiglu": lambda: _gated(swiglu, swiglu_reference, "silu"),
    "geglu": lambda: _gated(geglu, geglu_reference, "gelu"),
    "cross-entropy": _cross_entropy,
    "cross-entropy-options": lambda: _cross_entropy(label_smoothing=0.1, z_loss=0.01, softcap=2.0, reduction="none"),
    "cross-entropy-in-place": lambda: _cross_entropy(in_place=True, label_smoothing=0.1, softcap=2.0),
    "kl-div": lambda: _kl_div(reduction="batchmean"),
    "kl-div-none": lambda: _kl_div(reduction="none", log_target=True),
    "jsd": lambda: _jsd(beta=0.3),
    "jsd-forward": lambda: _jsd(beta=0.0, reduction="sum"),
    "jsd-reverse": lambda: _jsd(beta=1.0, reduction="none"),
    "linear-jsd": lambda: _linear_jsd(beta=0.3, temperature=2.0, chunk_size=4),
    "linear-jsd-none": lambda: _linear_jsd(bias=True, beta=1.0, reduction="none", chunk_size=7),
}
