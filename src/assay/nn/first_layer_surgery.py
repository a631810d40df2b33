"""Put TrAct (arXiv:2410.23970) into the first layer of one's own model, in place, and take it out again.

The layer stays the object that it is, with its parameters, hooks, names and place in an optimizer: only its class
changes, from `nn.Linear` to `assay.nn.TrActLinear` and so on. Equations are in `assay.nn.first_layers`.

Departure: official code makes a new layer around the old parameters, which loses hooks and what shares the layer.
Cost: none beyond the layers' own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from torch import nn

from assay.errors import InvalidInput, UnknownName
from assay.nn._moment_inverse import check_lam
from assay.nn.first_layers import TrActConv2d, TrActEmbedding, TrActLinear

__all__ = ["TrActRecord", "tract"]

REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: TrActLinear,
    nn.Conv2d: TrActConv2d,
    nn.Embedding: TrActEmbedding,
}
EMBEDDING_OPTIONS = ("max_norm", "scale_grad_by_freq", "sparse")


@dataclass(frozen=True)
class _Change:
    name: str
    module: nn.Module
    original: type[nn.Module]


class TrActRecord:
    """The record of the layers that got TrAct; undo it, or use it as a context manager."""

    def __init__(self, changes: Iterable[_Change], lam: float) -> None:
        self._changes = tuple(changes)
        self.lam = lam
        self.active = True

    @property
    def replaced(self) -> dict[str, nn.Module]:
        """The layers by their names in the model."""
        return {change.name: change.module for change in self._changes}

    def undo(self) -> None:
        """Give every layer its class back; done once, further calls do nothing.

        Raises:
            InvalidInput: If a layer got yet another class since, as by a parametrization; nothing is undone then.
        """
        if self.active:
            changed = [c for c in self._changes if type(c.module) is not REPLACEMENTS[c.original]]
            if changed:
                raise InvalidInput(
                    f"tract: {changed[0].name or 'the layer'} is a {type(changed[0].module).__name__} by now, not the "
                    f"{REPLACEMENTS[changed[0].original].__name__} that was put there; first remove what came after"
                )
            for change in self._changes:
                change.module.__class__ = change.original
                del change.module.lam
        self.active = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        layers = ", ".join(f"{change.name or 'itself'} ({change.original.__name__})" for change in self._changes)
        return f"<TrAct{'' if self.active else ' (undone)'} lam={self.lam} in {layers}>"


def tract(model: nn.Module, layers: str | Iterable[str] | None = None, lam: float = 0.1) -> TrActRecord:
    """Give a model's first layer the gradient that trains its pre-activations, in place.

    Parameters stay the same objects and state-dict keys the same, so this can be done before or after an optimizer is
    made. The model can be copied, pickled, saved and compiled as before. Standardise its inputs.

    Args:
        model: Any module, or a layer itself.
        layers: Names of layers as in `model.named_modules()`. None takes the first in the order of registration, which
            is nearly always that of the forward pass; the record says which it is.
        lam: Ridge, above 0, in units of the input's variance.

    Returns:
        The record: `.replaced`, `.undo()`; leaving a `with` block undoes too.

    Raises:
        InvalidInput: If nothing can be replaced, a layer is no plain `nn.Linear`, `nn.Conv2d` or `nn.Embedding`, has
            TrAct already, or lam is not above 0. Nothing is changed then.
        UnknownName: If there is no module of a name.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
        >>> with tract(model) as record:
        ...     record
        <TrAct lam=0.1 in 0 (Conv2d)>
    """
    check_lam(lam)
    changes = [_change(name, module) for name, module in _chosen(model, layers).items()]
    if not changes:
        raise InvalidInput(
            f"tract: found nothing in this {type(model).__name__} to replace; "
            "it needs an nn.Linear, nn.Conv2d or nn.Embedding"
        )
    for change in changes:
        change.module.__class__ = REPLACEMENTS[change.original]
        # the class was exchanged a line above, which a type checker does not follow
        change.module.lam = lam  # type: ignore[assignment]
    return TrActRecord(changes, lam)


def _chosen(model: nn.Module, layers: str | Iterable[str] | None) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    if layers is None:
        return dict([item for item in modules.items() if _has_matrix(item[1])][:1])
    names = [layers] if isinstance(layers, str) else list(layers)
    for name in names:
        if name not in modules:
            near = [n for n, m in modules.items() if type(m) in REPLACEMENTS][:8]
            raise UnknownName(f"tract: no module is named {name!r}; there are {', '.join(near) or 'no layers for it'}")
    return {name: modules[name] for name in names}


def _has_matrix(module: nn.Module) -> bool:
    """Return whether it is a leaf with weights for inputs: a recurrent or 1d layer too, which must not be skipped."""
    leaf = next(module.children(), None) is None
    return leaf and any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))


def _change(name: str, module: nn.Module) -> _Change:
    """Return what to change, or refuse a layer whose forward pass is not that of the plain class."""
    kind, where = type(module), f"the {type(module).__name__} {name!r}" if name else f"this {type(module).__name__}"
    if kind in REPLACEMENTS.values():
        raise InvalidInput(f"tract: {where} has TrAct already; undo that first")
    if kind not in REPLACEMENTS:
        raise InvalidInput(
            f"tract: {where} is no plain nn.Linear, nn.Conv2d or nn.Embedding (subclasses and parametrised layers "
            "compute something else); name the layers to replace, as in tract(model, 'conv1')"
        )
    used = [option for option in EMBEDDING_OPTIONS if getattr(module, option, None)]
    if used:
        raise InvalidInput(f"tract: {where} uses {', '.join(used)}, which TrAct's gradient cannot go with; turn it off")
    return _Change(name, module, kind)
