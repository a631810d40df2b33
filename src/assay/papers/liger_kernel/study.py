"""Liger's kernels: a fraction of eager code's memory for the same loss, for a head and for a whole training step.

The whole-step arms train a model of `transformers`, which the scale "smoke" does without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.errors import MissingExtra
from assay.kernels.fused_linear_cross_entropy.functional import linear_cross_entropy
from assay.kernels.patching import patch
from assay.lab import Call, Study
from assay.lab.expectations import Expectation, below, equivalent, ratio
from assay.lab.resources import measured
from assay.streams import Streams

__all__ = ["Step", "errors", "head", "llama", "measure", "measure_model", "step", "study"]

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


def llama(vocabulary: int, features: int, layers: int, context: int, seed: int) -> Any:
    """Return a Llama with random weights in training mode, its other sizes in Llama 3's proportions.

    Args:
        vocabulary: V.
        features: H, a multiple of 64: heads have 64 features, four of them share keys and values, the MLP is 3.5 H wide.
        layers: How many.
        context: The longest sequence.
        seed: Of the weights; the global generator is left as it was.

    Raises:
        MissingExtra: If transformers is not installed.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise MissingExtra("liger-kernel trains a Llama: pip install 'assay[transformers]'") from error
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=features,
        intermediate_size=features * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=features // 64,
        num_key_value_heads=max(1, features // 256),
        max_position_embeddings=context,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).train()


def measure_model(
    streams: Streams, *, patched: bool, vocabulary: int, features: int, layers: int, sequences: int, context: int
) -> dict[str, float]:
    """Train a small Llama for two steps and return the second one's memory and CPU time, and the losses.

    Returns:
        `step_memory` in bytes above model and optimizer state, gradients included; `step_cpu_seconds`; `loss` before
        the second step and `loss_after` it.
    """
    model = llama(vocabulary, features, layers, context, streams.entropy("init") % 2**32)
    if patched:
        patch(model)
    # The fused update has no temporaries that would hide what the kernels save.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(vocabulary, (sequences, context), generator=streams.torch("data"))

    def train() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    train()  # what is set up on first use is no part of a step, nor are the optimizer's states
    optimizer.zero_grad()
    with measured() as usage:
        loss = train()
    with torch.no_grad():
        after = float(model(input_ids=tokens, labels=tokens).loss)
    return {
        "step_memory": usage["peak_memory"],
        "step_cpu_seconds": usage["cpu_seconds"],
        "loss": loss,
        "loss_after": after,
    }


SIZES = {"smoke": (1024, 64, 8192), "desk": (2048, 512, 32000), "paper": (16384, 4096, 128256)}
SCALED_DOWN = "scaled down from 16384 x 4096 x 128256 because the logits of eager code must fit into memory"
PAPER_SIZE = "the largest size of the official repository's benchmark of this op, with Llama 3's vocabulary"


VOCABULARIES = {"32k": 32000, "128k": 128256}
MODELS = {
    "desk": {"features": 256, "layers": 4, "sequences": 4, "context": 256},
    "paper": {"features": 4096, "layers": 32, "sequences": 8, "context": 512},
}
MODEL_SCALED_DOWN = "scaled down from Llama 3 8B (4096 features, 32 layers) at length 512 to fit a CPU's time"
MODEL_PAPER_SIZE = "section 4 (Llama 3 8B, length 512); one device instead of four, so a smaller batch"


def head_arms(scale: str) -> dict[str, Call]:
    """Return the arms that measure the head alone."""
    tokens, features, classes = SIZES[scale]
    sizes = {"tokens": tokens, "features": features, "classes": classes}
    return {
        f"{name} {dtype}": Call(measure, {"implementation": name, **sizes, "dtype": dtype})
        for dtype in ("float32", "bfloat16")
        for name in IMPLEMENTATIONS
    }


def model_arms(scale: str) -> dict[str, Call]:
    """Return the arms that measure a whole step of a Llama."""
    return {
        f"Llama {name}{', patched' * patched}": Call(
            measure_model, {"patched": patched, "vocabulary": vocabulary, **MODELS[scale]}
        )
        for name, vocabulary in VOCABULARIES.items()
        for patched in (False, True)
    }


def model_expectations() -> list[Expectation]:
    """Return what is expected of patched against unpatched models."""
    found: list[Expectation] = []
    for name in VOCABULARIES:
        plain, patched = f"Llama {name}", f"Llama {name}, patched"
        found += [
            ratio("step_memory", patched, plain, below=0.4),
            ratio("step_cpu_seconds", patched, plain, below=1.1),
            equivalent("loss_after", within=2e-4, arms=[plain, patched]),
        ]
    return found


def study(scale: str) -> Study:
    """Return the study of the paper's memory claim for its linear cross-entropy and for patched models."""
    models = model_arms(scale) if scale in MODELS else {}
    size = PAPER_SIZE if scale == "paper" else SCALED_DOWN
    model_size = MODEL_PAPER_SIZE if scale == "paper" else MODEL_SCALED_DOWN
    model_sources = {
        "patched": "section 3.3 (patching), all kernels; the unpatched model beside it",
        "vocabulary": "Llama 2's and Llama 3's",
        **{f"{arm}: {name}": model_size for arm in models for name in ("features", "layers", "sequences", "context")},
    }
    return Study(
        claim="A chunked linear cross-entropy that forms its gradients in the forward pass takes less than a fifth of "
        "eager code's memory, at equal loss and at no more than 1.1 times its time; a model that is patched with it "
        "and the other kernels trains in less than two fifths of its memory.",
        arms={**head_arms(scale), **models},
        expects=[
            ratio("step_memory", "assay float32", "eager float32", below=0.2),
            ratio("step_memory", "assay bfloat16", "eager bfloat16", below=0.2),
            ratio("step_cpu_seconds", "assay float32", "eager float32", below=1.1),
            ratio("step_cpu_seconds", "assay bfloat16", "eager bfloat16", below=1.1),
            below("loss_error", 2e-5, arms=["assay float32"]),
            below("loss_error", 1e-3, arms=["assay bfloat16"]),
            *(model_expectations() if models else []),
        ],
        sources={
            "implementation": "section 3.2 (FusedLinearCrossEntropy); eager and PyTorch's own chunked operator beside it",
            "tokens": size,
            "features": size,
            "classes": size,
            "dtype": "bfloat16: the official benchmark; float32: to see exactness",
            **(model_sources if models else {}),
        },
        limits="One operator, and a Llama of 20 to 70 million weights, in float32 on a CPU: a small model's step is "
        "mostly its head, so the share that is saved is larger than for a deep one. Memory of the "
        "weights and of the optimizer's states, which no kernel changes, is not counted. The paper's throughput "
        "figures are for GPUs, where launch overhead counts too; they cannot be shown here. torch.compile, which "
        "closes part of the gap, is measured in bench/ only, since compiling takes longer than the steps. The scale "
        "'smoke' measures the operator alone. The expectations on the Llama were written after first measurements of it "
        "had been seen.",
        covers="the hidden states, weights, tokens and labels, and the machine's moments of speed",
        version=2,
    )
