"""Run a module's Triton launchers in Triton's interpreter, in a process of their own.

Triton decides when it is imported whether it interprets or compiles, so that one process cannot do both:

    with interpreter() as interpreted:
        y = interpreted(launch_forward, x, weight, 1e-6)

`launch_forward` is a top-level function of a `triton_kernel.py`; it is sent by name, its tensors by value.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

__all__ = ["interpreter"]

SECONDS = 120.0  # a call in the interpreter takes milliseconds per program


def _interpret() -> None:
    """Make Triton, once it is imported by this process, interpret its kernels."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def _call(pool: ProcessPoolExecutor, launcher: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return pool.submit(launcher, *arguments, **options).result(timeout=SECONDS)


@contextmanager
def interpreter() -> Iterator[Callable[..., Any]]:
    """Yield a function that calls a launcher (its first argument) with tensors on the CPU, interpreted."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_interpret) as pool:
        yield partial(_call, pool)
