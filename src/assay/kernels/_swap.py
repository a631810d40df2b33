"""Change what one module computes by changing its class: parameters, buffers, hooks and state-dict keys stay.

A *recipe* makes a new `forward` from the one it replaces. The module's class becomes a subclass of its own class with
that `forward`, under the same name, since libraries look at names (`save_pretrained` writes it down). Such classes
are made once per class and recipes, pickle as "this class with these recipes", and are undone without a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import nn

__all__ = ["Recipe", "add_recipe", "original_class", "recipes_of", "remove_recipe", "stand_in", "with_recipes"]


class Recipe(Protocol):
    """How to replace a forward; hashable and picklable."""

    @property
    def kernel(self) -> str:
        """What it puts in place, as users call it; empty for a part of another recipe's change."""
        ...

    def forward(self, base: type[nn.Module]) -> Callable[..., Any]:
        """Return the forward, self first, that a subclass of `base` shall have."""
        ...


def recipes_of(module: nn.Module) -> tuple[Recipe, ...]:
    """Return what was done to a module, first to last."""
    return getattr(type(module), "_assay_recipes", ())


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module had before any recipe."""
    return getattr(type(module), "_assay_original", type(module))


_made: dict[tuple[type[nn.Module], tuple[Recipe, ...]], type[nn.Module]] = {}


def with_recipes(original: type[nn.Module], recipes: tuple[Recipe, ...]) -> type[nn.Module]:
    """Return the subclass of a class that follows recipes, the last one outermost; always the same one."""
    if not recipes:
        return original
    if (original, recipes) not in _made:
        base = with_recipes(original, recipes[:-1])
        namespace = {
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "__reduce_ex__": _reduce,
            "_assay_original": original,
            "_assay_recipes": recipes,
            "forward": recipes[-1].forward(base),
        }
        _made[original, recipes] = type(original.__name__, (base,), namespace)
    return _made[original, recipes]


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    """Pickle the class by what it was made of: its name leads to the original."""
    parts: Any = nn.Module.__reduce_ex__(self, protocol)
    return (_rebuild, (original_class(self), recipes_of(self)), *parts[2:])


def _rebuild(original: type[nn.Module], recipes: tuple[Recipe, ...]) -> nn.Module:
    cls = with_recipes(original, recipes)
    return cls.__new__(cls)


def add_recipe(module: nn.Module, recipe: Recipe) -> None:
    """Make a module follow a recipe on top of those it follows."""
    module.__class__ = with_recipes(original_class(module), (*recipes_of(module), recipe))


def remove_recipe(module: nn.Module, recipe: Recipe) -> None:
    """Take the last equal recipe away, whatever was added after it."""
    kept = list(recipes_of(module))
    del kept[len(kept) - 1 - kept[::-1].index(recipe)]
    module.__class__ = with_recipes(original_class(module), tuple(kept))


def stand_in(
    module: nn.Module, *, tensors: Mapping[str, nn.Parameter] = {}, children: Mapping[str, nn.Module] = {}
) -> nn.Module:
    """Return a shallow copy with other parameters and children, to see what the module's class computes.

    Args:
        module: Is left alone.
        tensors: Its parameters by name.
        children: Its submodules by name.
    """
    cls = type(module)
    copy = cls.__new__(cls)
    copy.__dict__.update(module.__dict__)
    copy.__dict__["_parameters"] = {**module._parameters, **tensors}
    copy.__dict__["_modules"] = {**module._modules, **children}
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        copy.__dict__[hooks] = type(module.__dict__[hooks])()
    return copy
