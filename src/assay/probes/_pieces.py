"""Join tiny batches, and cut large ones into pieces whose activations stay in the processor's cache.

The mean loss of a batch is the weighted mean over its pieces, unless the loss couples samples (class weights,
contrastive terms). Whether it does is tried on each batch, and such a batch stays as it came. So do batches on a GPU,
where nothing is won by cutting.

Cost: at most three forward passes without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["joinable", "pieces"]

_Batch = tuple[Any, Tensor]

_CACHE = 2**21  # bytes of the largest activation of a piece: about a core's second-level cache
_FEW = 16  # samples of the trial, and the smallest piece
_MANY = 64  # batches are joined up to this many samples, since each piece costs some milliseconds to linearise


def joinable(batches: Iterable[_Batch]) -> Iterator[list[_Batch]]:
    """Yield the batches, in order, in groups of `_MANY` samples or a few more that could be one batch."""
    group: list[_Batch] = []
    for x, y in batches:
        if group and not (_alike(group[0], (x, y)) and sum(len(part[1]) for part in group) < _MANY):
            yield group
            group = []
        group.append((x, y))
    if group:
        yield group


def pieces(loss: Callable[[Any, Tensor], Tensor], batches: Sequence[_Batch]) -> Sequence[_Batch]:
    """Return the same samples, in order, in pieces of a size that is fast to work on.

    Args:
        loss: The mean loss of inputs and targets.
        batches: One batch, or several that `joinable` put together; inputs (B, ...) or a mapping of them.
    """
    x, y = batches[0] if len(batches) == 1 else tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    tensors = list(x.values()) if isinstance(x, Mapping) else [x]
    sliceable = all(isinstance(t, Tensor) and t.ndim > 0 and len(t) == len(y) for t in tensors)
    if y.device.type != "cpu" or not sliceable:
        return batches
    with torch.no_grad():
        size = _size(loss, x, y)
        parts = [(_part(x, i, i + size), y[i : i + size]) for i in range(0, len(y), size)]
        found = [_mean(loss, cut) for cut in ([(x, y)], parts, batches) if cut is parts or len(cut) != len(parts)]
        return parts if all(torch.allclose(mean, found[0], rtol=1e-4, equal_nan=True) for mean in found) else batches


def _size(loss: Callable[[Any, Tensor], Tensor], x: Any, y: Tensor) -> int:
    """Return the samples of a piece."""
    if len(y) <= _FEW:
        return len(y)
    with _Largest() as largest:
        loss(_part(x, 0, _FEW), y[:_FEW])
    at_once = max(_FEW, _CACHE * _FEW // max(largest.size, 1))
    return math.ceil(len(y) / math.ceil(len(y) / at_once))


def _mean(loss: Callable[[Any, Tensor], Tensor], batches: Sequence[_Batch]) -> Tensor:
    samples = sum(len(y) for _, y in batches)
    return torch.stack([loss(x, y) * (len(y) / samples) for x, y in batches]).sum()


def _alike(first: _Batch, second: _Batch) -> bool:
    pairs = list(zip(first, second, strict=True))
    if not all(isinstance(t, Tensor) and t.ndim > 0 for pair in pairs for t in pair):
        return False
    return all(a.shape[1:] == b.shape[1:] and a.dtype == b.dtype for a, b in pairs)


def _part(x: Any, start: int, stop: int) -> Any:
    return {name: t[start:stop] for name, t in x.items()} if isinstance(x, Mapping) else x[start:stop]


class _Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation makes; views make none."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it returns."""
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in given]
        self.size = max(self.size, *(t.numel() * t.element_size() for t in made), 0)
        return out
