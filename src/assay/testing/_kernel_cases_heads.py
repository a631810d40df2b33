"""Tiny settings of the embedding, the preference losses and tiled modules for the kernels' checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.kernels.preference import (
    LogProbability,
    cpo_loss,
    dpo_loss,
    kto_loss,
    linear_log_probability,
    orpo_loss,
    simpo_loss,
)
from assay.kernels.tiling import tiled
from assay.kernels.token_embedding.functional import embedding
from assay.kernels.token_embedding.op import embedding_backward, embedding_forward
from assay.kernels.token_embedding.reference import embedding_reference
from assay.testing._kernel import Kernel
from assay.testing._shared import seeded

__all__ = ["HEAD_CASES"]


def _embedding(padding_idx: int | None = None) -> Kernel:
    """`embedding` of 3 x 4 words out of 7, some of them several times and some never."""

    def inputs(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        weight = torch.randn(7, 5, generator=generator, dtype=torch.float64).to(dtype)
        return torch.tensor([[1, 1, 6, 0], [3, 1, 6, 6], [2, 2, 1, 0]]), weight

    def operators(words: Tensor, weight: Tensor) -> Any:
        padding = -1 if padding_idx is None else padding_idx % 7
        yield embedding_forward, (words.flatten(), weight, padding)
        yield embedding_backward, (torch.ones(12, 5), words.flatten(), 7, padding)

    return Kernel(
        call=partial(embedding, padding_idx=padding_idx),
        reference=partial(embedding_reference, padding_idx=padding_idx),
        inputs=inputs,
        operators=operators,
    )


def _plain_log_probability(hidden: Tensor, weight: Tensor, labels: Tensor) -> LogProbability:
    logits = F.linear(hidden, weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    kept = labels != -100
    found = logits.log_softmax(-1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return LogProbability((found * kept).sum(1), kept.sum(1))


def _preference(loss: Callable[[LogProbability], Tensor]) -> Kernel:
    """A preference loss of 2 pairs of sequences of 6 tokens, with a head of 13 words and 5 features."""

    def inputs(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        shapes = (4, 6, 5), (13, 5)
        hidden, weight = (torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
        labels = torch.randint(0, 13, (4, 6), generator=generator)
        labels[:, 0] = labels[1, 4:] = -100
        return hidden, weight, labels

    return Kernel(
        call=lambda *tensors: loss(linear_log_probability(*tensors, chunk_size=5)),
        reference=lambda *tensors: loss(_plain_log_probability(*tensors)),
        inputs=inputs,
    )


def _frozen(policy: LogProbability) -> LogProbability:
    """What a reference model might say of the same two sequences."""
    return LogProbability(policy.total.new_tensor([-9.0, -12.0]), policy.tokens)


def _tiled(shards: int) -> Kernel:
    """A module on 7 positions, a few at a time; one instance for each type, as tiling belongs to a module."""

    def build(dtype: torch.dtype) -> nn.Module:
        module = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 5))
        generator = seeded(7)
        for parameter in module.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator))
        return module.to(dtype)

    dtypes = torch.float64, torch.float32, torch.float16, torch.bfloat16
    whole = {dtype: build(dtype) for dtype in dtypes}
    parts = {dtype: build(dtype) for dtype in dtypes}
    for module in parts.values():
        tiled(module, shards)

    def inputs(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn(2, 7, 5, generator=generator, dtype=torch.float64).to(dtype),)

    return Kernel(call=lambda x: parts[x.dtype](x), reference=lambda x: whole[x.dtype](x), inputs=inputs)


HEAD_CASES: dict[str, Callable[[], Kernel]] = {
    "embedding": _embedding,
    "embedding-padding": lambda: _embedding(padding_idx=-1),
    "dpo-loss": lambda: _preference(lambda p: dpo_loss(p[:2], p[2:], _frozen(p[:2]), _frozen(p[2:]))),
    "cpo-loss": lambda: _preference(lambda p: cpo_loss(p[:2], p[2:])),
    "simpo-loss": lambda: _preference(lambda p: simpo_loss(p[:2], p[2:])),
    "orpo-loss": lambda: _preference(lambda p: orpo_loss(p[:2], p[2:])),
    "kto-loss": lambda: _preference(lambda p: kto_loss(p[:2], _frozen(p[2:]), torch.tensor([True, False]), 1.5)),
    "tiled": lambda: _tiled(3),
}
