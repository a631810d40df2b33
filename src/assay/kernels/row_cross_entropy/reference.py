"""Cross-entropy written plainly, with autograd for the rest.

What the fused implementations must equal. It keeps several (R, V) tensors, and supports everything that autograd does:
double backward, forward mode, `torch.func`.

Shapes: R rows (tokens), V classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.kernels._row_blocks import working_dtype

__all__ = ["cross_entropy_reference"]


def cross_entropy_reference(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """Return what `cross_entropy` returns, with all intermediates in memory.

    Args, shapes and the result are those of `assay.kernels.cross_entropy`; inputs are not checked.
    """
    logits = logits.reshape(target.numel(), logits.shape[-1]).to(working_dtype(logits.dtype))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    labels = target.reshape(-1)
    kept = labels != ignore_index
    class_weight = logits.new_ones(logits.shape[1]) if weight is None else weight.to(logits.dtype)
    chosen = torch.where(kept, labels, 0)
    row_weight = class_weight[chosen] * kept

    log_normalizer = torch.logsumexp(logits, 1)
    log_probability = logits - log_normalizer.unsqueeze(1)
    true_class = -log_probability.gather(1, chosen.unsqueeze(1)).squeeze(1)
    losses = (1 - label_smoothing) * row_weight * true_class + z_loss * row_weight * log_normalizer**2
    if label_smoothing:
        every_class = -(log_probability * class_weight).mean(1)
        losses = losses + label_smoothing * every_class * kept
    if reduction == "none":
        return losses.view(target.shape)
    return losses.sum() / row_weight.sum() if reduction == "mean" else losses.sum()
