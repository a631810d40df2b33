"""Peak memory of the tensors that a call makes: exact to the byte, and the same on every machine.

Counts distinct storages from their first operation to their last reference, on the side of autograd too: activations
kept for the backward pass, detached outputs, temporaries. What the allocator holds beyond them is not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_tensor_bytes"]


def peak_tensor_bytes(call: Callable[[], object], kept: Callable[[], Collection[Tensor]] = tuple) -> int:
    """Return the most bytes that tensors made by a call take at a time.

    Args:
        call: What to measure; a warm call, since the first may fill caches.
        kept: Tensors that are there after the call and do not count, such as gradients.

    Example:
        >>> x = torch.zeros(1000)
        >>> peak_tensor_bytes(lambda: ((x + 1).sum(), x * 2))
        4004
    """
    ledger = _Ledger()
    with ledger:
        result = call()
    ignored = {ledger.number_of(tensor) for tensor in kept()}
    del result
    held = peak = 0
    for number, size in ledger.events:
        if number not in ignored:
            held += size
            peak = max(peak, held)
    return peak


class _Ledger(TorchDispatchMode):
    """Notes when each storage appears and when it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []
        self._numbers: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()
        self._made = 0

    def number_of(self, tensor: Tensor) -> int | None:
        """Return a storage's number, None if it was there before."""
        return self._numbers.get(tensor.untyped_storage())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._numbers:
            return
        self._made += 1
        number, size = self._made, storage.nbytes()
        self._numbers[storage] = number
        self.events.append((number, size))
        weakref.finalize(storage, self.events.append, (number, -size))
