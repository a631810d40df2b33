"""Gated activations written plainly, with autograd for the rest.

What the fused implementations must equal. Autograd keeps three tensors: both inputs and the activation; in return
there is forward mode.

Shapes: a, b and the result (...).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["geglu_reference", "swiglu_reference"]


def swiglu_reference(a: Tensor, b: Tensor) -> Tensor:
    """Return silu(a) b, as `assay.kernels.swiglu` does; inputs are not checked."""
    return F.silu(a) * b


def geglu_reference(a: Tensor, b: Tensor) -> Tensor:
    """Return gelu(a) b with GELU's tanh form, as `assay.kernels.geglu` does; inputs are not checked."""
    return F.gelu(a, approximate="tanh") * b
