"""What NoProp accepts: denoisers, options, embeddings and labels."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput


class Denoiser(Protocol):
    """What the rule needs of a model; each block has `encode(x) -> code` and is called as `block(z, code[, t])`."""

    blocks: Any  # an nn.ModuleList
    num_classes: int
    embed_dim: int
    time_conditioned: bool


NEEDED = tuple(Denoiser.__annotations__)


def denoiser(model: nn.Module, num_classes: int, kind: str) -> Denoiser:
    """Return the model as a denoiser of that kind.

    Raises:
        InvalidInput: If it is none, or of another number of classes.
    """
    if kind not in ("dt", "ct", "fm"):
        raise InvalidInput(f"kind must be 'dt', 'ct' or 'fm', not {kind!r}")
    if missing := [name for name in NEEDED if not hasattr(model, name)]:
        raise InvalidInput(
            f"NoProp needs a denoiser, whose blocks take a noisy label embedding beside the input; "
            f"{type(model).__name__} has no {missing[0]!r}: use assay.models.NoPropNet"
        )
    net = cast(Denoiser, model)
    if net.time_conditioned != (kind != "dt"):
        wanted = "separate blocks, NoPropNet(blocks=10)" if kind == "dt" else "a time, NoPropNet(blocks=None)"
        raise InvalidInput(f"NoProp of kind {kind!r} needs a denoiser with {wanted}, and the model's has not")
    if num_classes < 2 or net.num_classes != num_classes:
        raise InvalidInput(
            f"num_classes must be at least 2 and that of the denoiser, {net.num_classes}, but is {num_classes}"
        )
    return net


def check_options(
    kind: str,
    order: str,
    per_batch: int,
    depth: int,
    schedule: str | None,
    eta: float | None,
    inference_steps: int | None,
    samples: int,
) -> None:
    """Refuse values out of range, and options that the kind does not have.

    Raises:
        InvalidInput: With what was expected.
    """
    if order not in ("random", "cycle", "epoch"):
        raise InvalidInput(f"order must be 'random', 'cycle' or 'epoch', not {order!r}")
    if not 1 <= per_batch <= depth:
        raise InvalidInput(f"per_batch must be from 1 to the number of blocks, {depth}, not {per_batch}")
    if order == "epoch" and per_batch != 1:
        raise InvalidInput("order 'epoch' trains one block at a time; leave per_batch out")
    if schedule not in (None, "cosine", "learned"):
        raise InvalidInput(f"schedule must be 'cosine' or 'learned', not {schedule!r}")
    if eta is not None and not eta > 0:
        raise InvalidInput(f"eta must be above 0, not {eta}")
    if samples < 1 or (inference_steps is not None and inference_steps < 1):
        raise InvalidInput(f"inference_steps and samples must be at least 1, not {inference_steps} and {samples}")
    if kind == "fm" and (schedule or eta):
        raise InvalidInput("flow matching has neither a noise schedule nor eta; leave them out")
    if kind != "dt" and order != "random":
        raise InvalidInput(f"kind {kind!r} has one block, so no order; leave it out")
    if kind == "dt" and inference_steps is not None:
        raise InvalidInput(f"kind 'dt' predicts in as many steps as it has blocks, {depth}; leave inference_steps out")


def first_embedding(embed: str | int | Tensor, num_classes: int, dim: int, generator: torch.Generator) -> Tensor:
    """Return the initial embeddings (C, d).

    Raises:
        InvalidInput: If they are not of the denoiser's size.
    """
    if isinstance(embed, Tensor):
        found = embed.detach().clone().float().flatten(1)
    elif isinstance(embed, (str, bool)):
        if embed != "onehot":
            raise InvalidInput(f"embed must be 'onehot', a size or a tensor (classes, size), not {embed!r}")
        found = torch.eye(num_classes)
    elif embed < 1:
        raise InvalidInput(f"embed must be at least 1, not {embed}")
    else:
        found = nn.init.orthogonal_(torch.empty(num_classes, embed), generator=generator)
    if tuple(found.shape) != (num_classes, dim):
        raise InvalidInput(
            f"the embeddings have shape {tuple(found.shape)}, but the denoiser takes ({num_classes}, {dim}); "
            f"build it with embed_dim={found.shape[-1]}"
        )
    return found


@torch.no_grad()
def nearest(w: Tensor) -> nn.Linear:
    """Return the linear map w z - |w|^2 / 2, whose argmax is the nearest to z of the embeddings w (C, d)."""
    found: nn.Linear = nn.utils.skip_init(nn.Linear, w.shape[1], len(w), device=w.device, dtype=w.dtype)
    found.weight.copy_(w)
    found.bias.copy_(-w.square().sum(1) / 2)
    return found


def check_labels(y: Tensor, num_classes: int) -> None:
    """Refuse labels that have no embedding.

    Raises:
        InvalidInput: If they are not integers from 0 to C - 1, one per sample.
    """
    if y.ndim != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InvalidInput(
            f"NoProp embeds class labels, integers of shape (samples,), but got {y.dtype} of shape {tuple(y.shape)}"
        )
    low, high = (int(end) for end in y.aminmax()) if len(y) else (0, 0)
    if low < 0 or high >= num_classes:
        raise InvalidInput(f"NoProp embeds the classes 0 to {num_classes - 1}, but labels go from {low} to {high}")
