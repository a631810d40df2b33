"""Liger's fused linear cross-entropy: a fraction of eager's memory for the same loss, measured for this op on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.kernels.fused_linear_cross_entropy.functional import linear_cross_entropy
from assay.lab import Call, Study
from assay.lab.expectations import below, ratio
from assay.lab.resources import measured
from assay.streams import Streams

__all__ = ["Step", "errors", "head", "measure", "step", "study"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
SAMPLE = 64  # rows and classes whose gradients are compared with float64


class Step(NamedTuple):
    """What one forward and backward pass gives: the loss and the gradients of hidden states and weight."""

    loss: Tensor
    hidden: Tensor
    weight: Tensor


def eager(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """All logits at once."""
    return F.cross_entropy(F.linear(hidden, weight), labels)


def torch_chunked(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """PyTorch's own chunked operator with its default options."""
    return F.linear_cross_entropy(hidden, weight, labels, options=torch.nn.LinearCrossEntropyOptions())


IMPLEMENTATIONS: dict[str, Loss] = {
    "eager": eager,
    "torch-chunked": torch_chunked,
    "assay": linear_cross_entropy,
}


def head(
    tokens: int, features: int, classes: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states (R, H), a head's weight (V, H) and labels (R,), with logits of variance 1."""
    hidden = torch.randn(tokens, features, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(classes, features, generator=generator) / features**0.5).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, classes, (tokens,), generator=generator)


def step(implementation: Loss, hidden: Tensor, weight: Tensor, labels: Tensor) -> Step:
    """Run forward and backward, and leave no gradients behind."""
    loss = implementation(hidden, weight, labels)
    loss.backward()
    assert hidden.grad is not None and weight.grad is not None
    result = Step(loss.detach(), hidden.grad, weight.grad)
    hidden.grad = weight.grad = None
    return result


@torch.no_grad()
def errors(found: Step, hidden: Tensor, weight: Tensor, labels: Tensor, *, chunk: int = 256) -> dict[str, float]:
    """Return relative errors of loss and gradients (those of the first rows and classes) against float64."""
    wide, rows, classes = weight.double(), min(SAMPLE, len(labels)), min(SAMPLE, len(weight))
    total, weight_gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(wide[:classes])
    for x, y in zip(hidden.double().split(chunk), labels.split(chunk), strict=True):
        logits = x @ wide.T
        total += F.cross_entropy(logits, y, reduction="sum")
        difference = torch.softmax(logits, 1, out=logits)[:, :classes] - F.one_hot(y, len(wide))[:, :classes]
        weight_gradient += difference.T @ x
    difference = torch.softmax(hidden[:rows].double() @ wide.T, 1) - F.one_hot(labels[:rows], len(wide))
    return {
        "loss_error": abs(float(found.loss.double() * len(labels) / total) - 1),
        "hidden_error": _relative(found.hidden[:rows], difference @ wide / len(labels)),
        "weight_error": _relative(found.weight[:classes], weight_gradient / len(labels)),
    }


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def measure(
    streams: Streams, *, implementation: str, tokens: int, features: int, classes: int, dtype: str
) -> dict[str, float]:
    """Run one training step of a language model's head and return its memory, CPU time and errors.

    Returns:
        `step_memory` in bytes above the inputs, gradients included; `step_cpu_seconds`; the errors of `errors`.
    """
    loss, generator = IMPLEMENTATIONS[implementation], streams.torch("data")
    # What the libraries set up on first use is no part of a step.
    step(loss, *head(64, features, 512, getattr(torch, dtype), generator))
    inputs = head(tokens, features, classes, getattr(torch, dtype), generator)
    with measured() as usage:
        found = step(loss, *inputs)
    return {
        "step_memory": usage["peak_memory"],
        "step_cpu_seconds": usage["cpu_seconds"],
        "loss": float(found.loss),
        **errors(found, *inputs),
    }


SIZES = {"smoke": (1024, 64, 8192), "desk": (2048, 512, 32000), "paper": (16384, 4096, 128256)}
SCALED_DOWN = "scaled down from 16384 x 4096 x 128256 because the logits of eager code must fit into memory"
PAPER_SIZE = "the largest size of the official repository's benchmark of this op, with Llama 3's vocabulary"


def study(scale: str) -> Study:
    """Return the study of the paper's memory claim for its linear cross-entropy."""
    tokens, features, classes = SIZES[scale]
    arms = {
        f"{name} {dtype}": Call(
            measure,
            {"implementation": name, "tokens": tokens, "features": features, "classes": classes, "dtype": dtype},
        )
        for dtype in ("float32", "bfloat16")
        for name in IMPLEMENTATIONS
    }
    size = PAPER_SIZE if scale == "paper" else SCALED_DOWN
    return Study(
        claim="A chunked linear cross-entropy that forms its gradients in the forward pass takes less than a fifth of "
        "eager code's memory, at equal loss and at no more than 1.1 times its time.",
        arms=arms,
        expects=[
            ratio("step_memory", "assay float32", "eager float32", below=0.2),
            ratio("step_memory", "assay bfloat16", "eager bfloat16", below=0.2),
            ratio("step_cpu_seconds", "assay float32", "eager float32", below=1.1),
            ratio("step_cpu_seconds", "assay bfloat16", "eager bfloat16", below=1.1),
            below("loss_error", 2e-5, arms=["assay float32"]),
            below("loss_error", 1e-3, arms=["assay bfloat16"]),
        ],
        sources={
            "implementation": "section 3.2 (FusedLinearCrossEntropy); eager and PyTorch's own chunked operator beside it",
            "tokens": size,
            "features": size,
            "classes": size,
            "dtype": "bfloat16: the official benchmark; float32: to see exactness",
        },
        limits="One operator on a CPU. The paper's throughput figures are for whole models on GPUs, where the other "
        "kernels and the launch overhead count too; they cannot be shown here. torch.compile, which closes part of "
        "the gap, is measured in bench/ only, since compiling takes longer than the steps.",
        covers="the hidden states, weights and labels, and the machine's moments of speed",
    )
