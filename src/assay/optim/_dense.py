"""The one refusal of sparse gradients, for steps that are defined on dense ones."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["refuse_sparse"]


def refuse_sparse(parameter: Tensor, name: str) -> None:
    """Raise InvalidInput if the parameter's gradient is sparse; `name` is that of the optimizer or transform."""
    if parameter.grad is not None and parameter.grad.layout is not torch.strided:
        raise InvalidInput(
            f"{name} needs dense gradients; the parameter of shape {tuple(parameter.shape)} has one of layout "
            f"{parameter.grad.layout} (for example from nn.Embedding(sparse=True))"
        )
