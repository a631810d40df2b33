"""The data that probes measure on, in whatever form the user has them, as batches on the model's device."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from assay.errors import InvalidInput
from assay.probes.view import View

__all__ = ["Batches"]


class Batches:
    """Pairs (inputs, targets) on the model's device; can be gone through again and again.

    Args:
        data: As `assay.Watch` takes them.
        batch_size: Samples per batch where the data are not in batches already.
        view: Tells the device.

    Raises:
        InvalidInput: If there are no data, or they have no such form.
    """

    def __init__(self, data: Any, batch_size: int, view: View) -> None:
        if data is None:
            raise InvalidInput("nothing to measure on; give data: a DataLoader, a pair of tensors or a list of batches")
        if isinstance(data, Iterator):
            data = list(data)  # a generator could be gone through only once
        self.data, self.view = data, view
        if hasattr(data, "inputs") and hasattr(data, "targets"):
            data = (data.inputs, data.targets)
        if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(t, Tensor) for t in data):
            if len(data[0]) != len(data[1]):
                raise InvalidInput(f"{len(data[0])} inputs but {len(data[1])} targets; expected one target per input")
            self.data = list(zip(*(t.split(batch_size) for t in data), strict=True))
        elif not isinstance(data, Iterable):
            raise InvalidInput(f"data must be a DataLoader, a pair of tensors or batches, not {type(data).__name__}")

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        device, empty = self.view.device, True
        with _generators_kept(self.data):
            for batch in _fresh(self.data):
                empty = False
                x, y = _pair(batch)
                yield _moved(x, device), y.to(device)
        if empty:
            raise InvalidInput("the data to measure on are empty")


def _pair(batch: Any) -> tuple[Any, Tensor]:
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    raise InvalidInput(f"a batch must be (inputs, targets) or a mapping with 'labels', not {type(batch).__name__}")


def _moved(x: Any, device: torch.device) -> Any:
    if isinstance(x, Mapping):
        return {name: _moved(value, device) for name, value in x.items()}
    return x.to(device) if isinstance(x, Tensor) else x


def _fresh(data: Any) -> Iterable[Any]:
    """Return data that can be gone through without restarting a pass that training is in the middle of."""
    if not isinstance(data, DataLoader) or not data.persistent_workers:
        return data
    data = copy.copy(data)
    data._iterator = None  # a loader with persistent workers has only one, shared by all who go through it
    return data


@contextmanager
def _generators_kept(data: Any) -> Iterator[None]:
    """Give back the draws that a loader takes from generators of its own, which a training loop may share."""
    parts = [data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None)]
    found = {id(g): g for p in parts if isinstance(g := getattr(p, "generator", None), torch.Generator)}
    states = [(generator, generator.get_state()) for generator in found.values()]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
