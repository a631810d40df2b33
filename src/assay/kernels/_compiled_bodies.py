"""Pointwise bodies of operators that `torch.compile` fuses, and when that is worth its time."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["compiled_body", "worth_compiling"]

# From these sizes on, a few hundred steps make up for the ten seconds that compiling takes.
COMPILED_FROM = 2**22
COMPILED_FROM_INSIDE_A_GRAPH = 2**18
HAS_COMPILER = (
    shutil.which(os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))) is not None
)


def worth_compiling(x: Tensor) -> bool:
    """Return whether an operator on a tensor compiles its body: it is large, on a CPU, and there is a C++ compiler."""
    from_elements = COMPILED_FROM_INSIDE_A_GRAPH if torch.compiler.is_compiling() else COMPILED_FROM
    return x.device.type == "cpu" and x.numel() >= from_elements and HAS_COMPILER


@cache
def compiled_body(body: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors compiled for any sizes, once per process."""
    return torch.compile(body, dynamic=True, fullgraph=True)
