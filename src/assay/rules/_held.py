"""Lets a hand-written backward pass tell a counter which tensors it keeps, as autograd's hooks tell of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

__all__ = ["hold", "listening"]

_listeners: list[Callable[[Tensor], object]] = []


def hold(*tensors: Tensor) -> list[object]:
    """Tell whoever listens that these tensors are kept, until the returned list is dropped."""
    return [listen(tensor) for listen in _listeners for tensor in tensors]


@contextmanager
def listening(listen: Callable[[Tensor], object]) -> Iterator[None]:
    """Call `listen` with every tensor that is held; what it returns lives as long as the tensor is held."""
    _listeners.append(listen)
    try:
        yield
    finally:
        _listeners.remove(listen)
