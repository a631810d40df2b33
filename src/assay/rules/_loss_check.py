"""Tells before training whether a rule can use a loss."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["check_class_loss", "check_loss"]

Loss = Callable[[Tensor, Tensor], Tensor]
SAMPLES = 256


def check_loss(loss: Loss, scores: Tensor, targets: Tensor) -> None:
    """Refuse a loss that gives no differentiable scalar for such scores and targets.

    The loss is tried on a copy of itself and of the global random state, so that nothing of it is left.

    Args:
        loss: `loss(scores, targets) -> scalar`.
        scores: (B, outputs).
        targets: (B,) or (B, outputs).

    Raises:
        InvalidInput: With what the loss said.
    """
    trial = copy.deepcopy(loss) if isinstance(loss, nn.Module) else loss
    name = getattr(loss, "__name__", type(loss).__name__)
    given = f"scores {tuple(scores.shape)} and targets {tuple(targets.shape)} of {targets.dtype}"
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = trial(scores.detach().clone().requires_grad_(), targets)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"the loss {name} can't be used with {given}: {reason}") from error
    if not isinstance(value, Tensor) or value.ndim != 0:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InvalidInput(f"the loss {name} must give one number for a mini-batch, but gave {what}; use its mean")
    if not value.requires_grad:
        raise InvalidInput(f"the loss {name} has no gradient with respect to the scores; a rule can't learn from it")


def check_class_loss(loss: Loss, num_classes: int, like: Tensor) -> None:
    """Refuse a loss that takes neither class labels nor one-hot targets for scores of C classes.

    Args:
        loss: `loss(scores, targets) -> scalar`.
        num_classes: Number of classes C.
        like: A tensor with the scores' device and floating-point type.

    Raises:
        InvalidInput: With what the loss said of class labels.
    """
    labels = torch.arange(max(SAMPLES, 2 * num_classes), device=like.device) % num_classes
    scores = torch.zeros(len(labels), num_classes, dtype=like.dtype, device=like.device)
    try:
        check_loss(loss, scores, labels)
    except InvalidInput as refused:
        try:
            check_loss(loss, scores, F.one_hot(labels, num_classes).to(like.dtype))
        except InvalidInput:
            raise refused from None
