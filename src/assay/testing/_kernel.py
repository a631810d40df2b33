"""What a kernel's conformance case consists of; apart from the checks, so that files of cases can import it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Kernel"]


@dataclass(frozen=True)
class Kernel:
    """A fused kernel in a tiny setting.

    Args:
        call: The op: tensors in, one tensor out. Floating-point tensors among its arguments are differentiated.
        reference: The same in plain PyTorch, right in float64.
        inputs: Makes the tensors, of odd sizes, from a dtype and a generator.
        operators: Given the tensors, the registered operators beneath, with arguments for `torch.library.opcheck`.
    """

    call: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: Callable[[torch.dtype, torch.Generator], tuple[Tensor, ...]]
    operators: Callable[..., Sequence[tuple[Any, tuple[Any, ...]]]] = field(default=lambda *tensors: ())
