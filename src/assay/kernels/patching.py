"""`patch`: the layers and the loss of a Hugging Face model computed by fused kernels, and back again.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.3 (patching).

Departures. Liger replaces classes and functions in the modelling modules, by the model's type, for all models of the
process. Here a single model is changed, module by module: each candidate's own forward is tried on small numbers first,
and left alone, with a warning, where no kernel gives the same. Nothing outside the model changes.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import nn

from assay.errors import InvalidInput, UnknownName
from assay.kernels._recognise import MATCHERS
from assay.kernels._swap import Recipe, add_recipe, original_class, recipes_of, remove_recipe

__all__ = ["Patch", "patch"]


@dataclass(frozen=True)
class Change:
    """One module and what it computes now.

    Args:
        module: The module that was changed.
        name: Its place in the model, such as "model.layers.0.mlp".
        recipe: How its forward was replaced.
    """

    module: nn.Module
    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Skipped:
    """A module that looks as if a kernel fitted, and why it was left alone."""

    name: str
    module_class: str
    kernel: str
    reason: str


class Patch:
    """The record of what was replaced in a model; undo it, or use it as a context manager.

    Args:
        changes: What was replaced.
        skipped: What was left alone.
    """

    def __init__(self, changes: Iterable[Change], skipped: Iterable[Skipped] = ()) -> None:
        self.changes, self.skipped = tuple(changes), tuple(skipped)
        self.active = True

    @classmethod
    def of(cls, model: nn.Module) -> Patch:
        """Return the record of what is replaced in a model now, for instance in one that was copied or loaded."""
        changes = (Change(m, name, recipe) for name, m in model.named_modules() for recipe in recipes_of(m))
        return cls(changes)

    @property
    def counts(self) -> dict[str, int]:
        """How many modules each kernel was put into."""
        return dict(Counter(change.recipe.kernel for change in self.changes if change.recipe.kernel))

    def undo(self) -> None:
        """Give every module the forward that it had; done once, further calls do nothing."""
        if self.active:
            for change in reversed(self.changes):
                remove_recipe(change.module, change.recipe)
        self.active = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        places: dict[str, Counter[str]] = {}
        for change in self.changes:
            if change.recipe.kernel:
                places.setdefault(change.recipe.kernel, Counter())[original_class(change.module).__name__] += 1
        parts = [
            f"{kernel}: " + ", ".join(f"{count} {name}" for name, count in counts.items())
            for kernel, counts in sorted(places.items())
        ]
        parts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        return f"<Patch{'' if self.active else ' (undone)'} {'; '.join(parts)}>"


def patch(model: nn.Module, kernels: Iterable[str] | None = None) -> Patch:
    """Let a model's layers and loss run on fused kernels, in place.

    Works on the models of `transformers` (tested: Llama, Qwen2, Qwen3, Mistral, Gemma, Gemma 2, GPT-2), on models
    whose modules compute the same, and on parts of models. Kernels and what they replace:

    - "rms_norm": RMS norms of any class, with Llama's or Gemma's order of casts and offset;
    - "layer_norm": `nn.LayerNorm`;
    - "rope": the function `apply_rotary_pos_emb` as attention modules see it (half-split form);
    - "swiglu", "geglu": MLPs with gate_proj, up_proj and down_proj, and SiLU or tanh GELU;
    - "gelu": activations that spell out the tanh GELU (GPT-2's), by PyTorch's own;
    - "linear_cross_entropy": the head and loss of causal language models. **While the model is in training mode and
      gets labels, it returns the loss and `logits=None`**; in eval mode or without labels it returns logits as ever.
      Ignored labels, the shift, `shift_labels` and `num_items_in_batch` mean what they mean without the patch.

    Parameters are the same objects and state-dict keys stay. A patched model can be pickled, copied, saved and
    compiled as before, with the same class names. Values and gradients agree up to rounding.

    Args:
        model: Any module; changed in place.
        kernels: Names from above; all by default.

    Returns:
        The record: `.counts`, `.changes`, `.skipped`, `.undo()`; leaving a `with` block undoes too.

    Raises:
        InvalidInput: If nothing in the model can be replaced, or a kernel is in place already.
        UnknownName: If there is no kernel of a name.

    Warns:
        UserWarning: If modules that look as if a kernel fitted are left alone, with the reason.

    Example:
        >>> norm = torch.nn.RMSNorm(8, eps=1e-6)
        >>> with patch(norm) as record:
        ...     record
        <Patch rms_norm: 1 RMSNorm>
    """
    names = _kernel_names(kernels)
    _refuse_double(model, names)
    changes, skipped = _changes(model, names)
    _warn(skipped)
    if not changes:
        raise InvalidInput(
            f"patch: found nothing in this {type(model).__name__} to replace by {', '.join(names)}; "
            "it needs RMS or layer norms, gated MLPs, rotary embeddings or a causal language model's head"
        )
    for change in changes:
        add_recipe(change.module, change.recipe)
    return Patch(changes, skipped)


def _kernel_names(kernels: Iterable[str] | None) -> list[str]:
    if isinstance(kernels, str):
        raise InvalidInput(f"patch: kernels must be a sequence of names, not {kernels!r}; write [{kernels!r}]")
    names = list(MATCHERS) if kernels is None else list(kernels)
    for name in names:
        if name not in MATCHERS:
            raise UnknownName(f"patch: no kernel is named {name!r}; there are {', '.join(MATCHERS)}")
    if not names:
        raise InvalidInput(f"patch: kernels is empty; there are {', '.join(MATCHERS)}")
    return names


def _refuse_double(model: nn.Module, names: Sequence[str]) -> None:
    for change in Patch.of(model).changes:
        if change.recipe.kernel in names:
            where = f"{type(change.module).__name__} {change.name!r}" if change.name else "this model"
            raise InvalidInput(
                f"patch: {where} runs {change.recipe.kernel} already; undo that first, with the record that patch "
                "returned or with Patch.of(model)"
            )


def _changes(model: nn.Module, names: Sequence[str]) -> tuple[list[Change], list[Skipped]]:
    """Ask every matcher about every module."""
    changes, skipped = [], []
    places = {
        module: place for place, module in model.named_modules() if not isinstance(module, torch.jit.ScriptModule)
    }
    for kernel in names:
        for module, place in places.items():
            found = MATCHERS[kernel](module)
            if isinstance(found, str):
                skipped.append(Skipped(place, type(module).__name__, kernel, found))
            elif found is not None:
                changes += [Change(target, places[target], recipe) for target, recipe in found]
    return changes, skipped


def _warn(skipped: Sequence[Skipped]) -> None:
    """Warn once of all that was skipped, alike modules together."""
    alike = Counter((each.module_class, each.kernel, each.reason) for each in skipped)
    if alike:
        lines = (f"{count} {name} for {kernel}: {reason}" for (name, kernel, reason), count in alike.items())
        warnings.warn("patch left alone " + "; ".join(lines), UserWarning, stacklevel=3)
