"""What one update costs, counted and not timed: floating-point operations and the bytes kept for backward passes.

Operations are those that `torch.utils.flop_counter` knows (matrix products and convolutions). Bytes are those of
distinct storages that autograd, or a rule's hand-written backward pass, holds at a time, parameters left out, at their
peak: a rule that frees each block's graph before the next block runs is seen to do so. Cost: one update runs several
times slower; counted once per trial.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from assay.rules._held import listening

__all__ = ["counted"]


class _Saved:
    """A tensor that autograd keeps for a backward pass; the ledger knows how long."""

    def __init__(self, tensor: Tensor, ledger: _Ledger) -> None:
        self.tensor, self.ledger = tensor, ledger
        ledger.hold(tensor)

    def __del__(self) -> None:
        self.ledger.release(self.tensor)


@dataclass
class _Ledger:
    """Bytes of distinct storages held for backward, now and at their peak; parameters are kept anyway."""

    ignored: set[int]
    holders: dict[int, int] = field(default_factory=dict)
    held: int = 0
    peak: int = 0

    def hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.ignored:
            return
        self.holders[key] = self.holders.get(key, 0) + 1
        if self.holders[key] == 1:
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)

    def release(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.ignored:
            return
        self.holders[key] -= 1
        if self.holders[key] == 0:
            self.held -= storage.nbytes()


class _Anywhere:
    """Says that every operation belongs to the whole: torch's own hooks on modules refuse gradients by leaves."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


@contextmanager
def counted(cost: dict[str, float], module: nn.Module) -> Iterator[None]:
    """Count the block's operations and saved bytes.

    Args:
        cost: Gets "flops_per_update" and "saved_bytes" when the block ends.
        module: Its parameters are kept anyway and do not count.

    Example:
        >>> cost, layer = {}, nn.Linear(4, 3)
        >>> with counted(cost, layer):
        ...     layer(torch.ones(2, 4)).sum().backward()
        >>> cost
        {'flops_per_update': 96.0, 'saved_bytes': 32.0}
    """
    from torch.utils.flop_counter import FlopCounterMode

    ledger = _Ledger({p.untyped_storage().data_ptr() for p in module.parameters()})
    counter = FlopCounterMode(display=False)
    # stands in for a ModuleTracker, whose hooks fail in rules that call autograd.grad
    counter.mod_tracker = _Anywhere()  # type: ignore[assignment]
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: _Saved(t, ledger), lambda saved: saved.tensor)
    with counter, hooks, listening(lambda t: _Saved(t, ledger)):
        yield
    cost["flops_per_update"] = float(counter.get_total_flops())
    cost["saved_bytes"] = float(ledger.peak)
