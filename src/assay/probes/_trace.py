"""The guard that puts a network back as it was: whatever a probe does inside, nothing of it stays.

Restored on exit, also after an error: training mode of every module, `requires_grad` and `.grad` of every parameter,
buffers, hooks, the state of generators that modules hold, and the random states of PyTorch (CPU and every GPU in use),
NumPy and Python.

Parameters are not copied: probes differentiate through aliases of them (`View.functional`). Buffers are, and are
written back only where they changed, so that a graph in flight between a user's forward and backward pass survives.

Cost: a copy of the buffers, about 10 microseconds per module, nothing that grows with the parameters.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["untouched"]

_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks") or "_hooks_" in name)


@contextmanager
def untouched(*modules: nn.Module) -> Iterator[None]:
    """Restore modules and random states on exit.

    Args:
        *modules: The networks that the block may run; submodules are covered.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> with untouched(layer):
        ...     _ = layer.eval()
        >>> layer.training
        True
    """
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    saved = [_ModuleState(part) for part in parts]
    generators = _Generators([part for part in (vars(p).get("generator") for p in parts) if part is not None])
    try:
        yield
    finally:
        for state in saved:
            state.restore()
        generators.restore()


class _ModuleState:
    """What one module (without its children) was when the block was entered."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.training = module.training
        self.hooks = {name: dict(getattr(module, name)) for name in _HOOKS}
        self.gradients = [(p, p.requires_grad, p.grad) for p in module._parameters.values() if p is not None]
        self.buffers = {name: (b, b.detach().clone()) for name, b in module._buffers.items() if b is not None}
        for parameter, _, _ in self.gradients:
            parameter.grad = None  # a backward pass inside then fills new tensors and leaves the user's alone

    def restore(self) -> None:
        """Write everything back."""
        self.module.training = self.training
        for name, hooks in self.hooks.items():
            registered = getattr(self.module, name)
            if dict(registered) != hooks:
                registered.clear()
                registered.update(hooks)
        for parameter, requires_grad, gradient in self.gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        for name, (buffer, value) in self.buffers.items():
            if not torch.equal(buffer, value):  # batch norm's running statistics change without a new version
                with torch.no_grad():
                    buffer.copy_(value)
            self.module._buffers[name] = buffer


class _Generators:
    """The global random states, and those of generators that somebody holds."""

    def __init__(self, held: list[Any]) -> None:
        self.held = [(generator, generator.get_state()) for generator in held if isinstance(generator, torch.Generator)]
        self.torch = torch.random.get_rng_state()
        self.cuda: list[Tensor] = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self.numpy = np.random.get_state()
        self.python = random.getstate()

    def restore(self) -> None:
        """Write everything back."""
        for generator, state in self.held:
            generator.set_state(state)
        torch.random.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)
        random.setstate(self.python)
