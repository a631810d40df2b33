"""The activations of a network: which modules they are, which dimension holds the neurons, hooks for one forward pass.

Modules are told by the name of their type or of a base class, so that torch's, `transformers`' and a user's own count:
ReLU and its kin, hard swish and top-k give exact zeros; GELU, SiLU (swish) and Mish are smooth and give none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes.view import View

__all__ = ["Reading", "found_readings", "hooked", "is_finite", "is_smooth", "neuron_dim"]

_EXACT = ("relu", "hardswish", "topk", "threshold")
_SMOOTH = ("gelu", "silu", "swish", "mish")
_LEAKY = {"leakyrelu", "prelu", "rrelu"}  # their names end so, but nothing of theirs is zero
NOTHING_FOUND = (
    "{} has no module of an activation's type (ReLU, GELU, SiLU, top-k ...); where it calls functions such as F.relu, "
    "name the layers whose output (layers=) or input (inputs_of=) is the activation"
)

Hook = Callable[[str, nn.Module, Tensor], Tensor | None]


class Reading(NamedTuple):
    """Where an activation is read: a module by name, its output or its first input."""

    name: str
    module: nn.Module
    input: bool


def is_smooth(module: nn.Module) -> bool:
    """Whether the module is a GELU, SiLU or the like."""
    return _kind(module) == "smooth"


def found_readings(view: View, layers: Sequence[str] | None, inputs_of: Sequence[str]) -> list[Reading]:
    """Return where to read: as named or, if nothing is named, the outputs of all modules of an activation's type.

    Raises:
        InvalidInput: If a named layer is not there.
    """
    for names in (layers, inputs_of):
        if isinstance(names, str):
            raise InvalidInput(f"layers are given as a list of names, not as the string {names!r}")
    if layers is None and not inputs_of:
        return [Reading(n, m, False) for n, m in view.model.named_modules() if n and _kind(m) is not None]
    outputs = [Reading(n, view.model.get_submodule(n), False) for n in view.layers(list(layers or ()))]
    return outputs + [Reading(n, view.model.get_submodule(n), True) for n in view.layers(list(inputs_of))]


def neuron_dim(name: str, activation: Tensor, given: int | None) -> int:
    """Return the dimension of neurons, counted from the end: as given, or the channels of images, else the last.

    Raises:
        InvalidInput: If the activation has fewer than 2 dimensions, or not the given one.
    """
    dim = (1 if activation.ndim >= 4 else -1) if given is None else given
    if activation.ndim < 2 or not -activation.ndim <= dim < activation.ndim or not activation.is_floating_point():
        raise InvalidInput(
            f"the activation at {name!r} is {activation.dtype} {tuple(activation.shape)}; expected floats with a "
            f"dimension of tokens and one of neurons{'' if given is None else f', dim={given}'}"
        )
    return dim - activation.ndim if dim >= 0 else dim


@contextmanager
def hooked(readings: Sequence[Reading], act: Hook, *, numbered: bool = True) -> Iterator[Counter[str]]:
    """Call `act(name, module, activation)` for each reading of the forward pass that the block runs.

    What it returns, if not None, takes the activation's place. A module that runs again is "name#2", "name#3" ...;
    where they are not numbered, as for a rule that predicts in many steps, all runs have the same name.

    Yields:
        How often each module ran.
    """
    runs: Counter[str] = Counter()

    def named(reading: Reading, activation: Any) -> Tensor | None:
        runs[reading.name] += 1
        if not isinstance(activation, Tensor):
            raise InvalidInput(f"layer {reading.name!r} gave a {type(activation).__name__}, not a tensor; leave it out")
        again = runs[reading.name]
        return act(
            reading.name if again == 1 or not numbered else f"{reading.name}#{again}", reading.module, activation
        )

    def before(reading: Reading) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            changed = named(reading, args[0] if args else None)
            return None if changed is None else (changed, *args[1:])

        return hook

    def after(reading: Reading) -> Callable[..., Any]:
        return lambda module, args, output: named(reading, output)

    with ExitStack() as hooks:
        for r in readings:
            if r.input:
                hooks.enter_context(r.module.register_forward_pre_hook(before(r)))
            else:
                hooks.enter_context(r.module.register_forward_hook(after(r)))
        yield runs


def _kind(module: nn.Module) -> str | None:
    if next(module.children(), None) is not None:
        return None
    for cls in type(module).__mro__:
        name = cls.__name__.lower()
        if name in _LEAKY or cls is nn.Module:
            return None
        if any(part in name for part in _EXACT):  # before swish: hard swish has exact zeros
            return "exact"
        if any(part in name for part in _SMOOTH):
            return "smooth"
    return None


def is_finite(activation: Tensor) -> bool:
    """Whether an activation holds neither NaN nor infinity, in one pass over it."""
    if activation.numel() == 0:
        return True
    return bool(torch.stack(activation.aminmax()).isfinite().all())
