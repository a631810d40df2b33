"""Names instead of registries: `"focal(gamma=3)"` becomes `assay.losses.FocalLoss(gamma=3)`.

A spec is a kebab-case name with optional arguments written as Python literals, or `package.module:Object` for a user's
own code. It is parsed with `ast` and never evaluated. A seam's `__all__` is its registry; where it has no such
name, the seam falls back to torch's own, then to plug-ins (entry points in the group `assay.<seam>`).
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from assay.errors import InvalidInput, MissingExtra, UnknownName

__all__ = ["Spec", "known", "parse", "resolve"]

_KEBAB = r"[A-Za-z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)*"
_IMPORT = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_SPEC = re.compile(rf"\s*(?P<name>{_IMPORT}|{_KEBAB})\s*(?:\((?P<arguments>.*)\))?\s*", re.DOTALL)

# Where a seam looks after Assay's own names, and the endings that a name may leave out.
_FALLBACKS = {
    "losses": "torch.nn",
    "optim": "torch.optim",
    "schedules": "torch.optim.lr_scheduler",
}
_ENDINGS = {"losses": ("loss",), "schedules": ("lr",)}


def _is_class(name: str, get: Callable[[], Any]) -> bool:
    return name[0].isupper() and inspect.isclass(get())


def _is_loader(name: str, get: Callable[[], Any]) -> bool:
    if not name[0].islower():
        return False
    signature = inspect.signature(get())
    optional = all(p.default is not inspect.Parameter.empty for p in signature.parameters.values())
    return optional and str(signature.return_annotation).endswith("Dataset")


# A seam's folder exports more than what may be named: pure functions, base classes, helpers.
_NAMEABLE: dict[str, Callable[[str, Callable[[], Any]], bool]] = {"data": _is_loader}
_BASES = {"Optimizer", "LRScheduler", "Rule", "Dataset", "View", "Phase", "Module"}


@dataclass(frozen=True)
class Spec:
    """A parsed name-spec: the name and its literal arguments."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        arguments = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return f"{self.name}({', '.join(arguments)})" if arguments else self.name


def _literal(node: ast.expr, text: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise InvalidInput(
            f"{text!r}: {ast.unparse(node)!r} is not a literal; arguments are numbers, strings, True, False, None, "
            "lists, tuples, sets or dicts"
        ) from None


def parse(text: str) -> Spec:
    """Parse a name-spec without evaluating anything.

    Args:
        text: For example `"focal(gamma=3)"`, `"adamw(lr=1e-3, betas=(0.9, 0.95))"` or `"my.module:MyModel(width=8)"`.

    Raises:
        InvalidInput: If the text is no name-spec.

    Example:
        >>> parse("focal(gamma=3)")
        Spec(name='focal', args=(), kwargs={'gamma': 3})
    """
    match = _SPEC.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{text!r} is no name; expected name(argument=value, ...) or package.module:Object(...)")
    arguments = match["arguments"] or ""
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise InvalidInput(f"{text!r}: cannot read the arguments ({error.args[0]})") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "f":
        raise InvalidInput(f"{text!r}: expected one pair of parentheses around the arguments")
    if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        raise InvalidInput(f"{text!r}: '*' and '**' are not allowed in a name's arguments")
    return Spec(
        name=match["name"],
        args=tuple(_literal(a, text) for a in call.args),
        kwargs={str(k.arg): _literal(k.value, text) for k in call.keywords},
    )


def _normal(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _keys(seam: str, name: str) -> Iterator[str]:
    """Yield what a user may type for a public name: itself, and itself without the seam's usual ending."""
    normal = _normal(name)
    yield normal
    for ending in _ENDINGS.get(seam, ()):
        if normal.endswith(ending) and normal != ending:
            yield normal.removesuffix(ending)


def _plugins(seam: str) -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=f"assay.{seam}")}


def _candidates(seam: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield (public name, how to get it): Assay's own first, then torch's, then plug-ins'."""
    if seam != "schedules":
        package = importlib.import_module(f"assay.{seam}")
        yield from ((name, partial(getattr, package, name)) for name in package.__all__)
    if seam in _FALLBACKS:
        module = importlib.import_module(_FALLBACKS[seam])
        # "batch-norm" is a name of torch.nn but no loss: only what has the seam's usual ending is offered.
        suffix = "Loss" if seam == "losses" else ""
        for name in vars(module):
            if name[0].isupper() and name.endswith(suffix):
                yield name, partial(getattr, module, name)
    yield from ((name, point.load) for name, point in _plugins(seam).items())


def _nameable(seam: str, name: str, get: Callable[[], Any]) -> bool:
    return name not in _BASES and _NAMEABLE.get(seam, _is_class)(name, get)


def _kebab(name: str) -> str:
    """Return the usual spelling: FocalLoss is focal-loss, KLDivLoss is kl-div-loss, AdamW stays adamw."""
    return (
        re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z]{2})|(?<=[A-Z]{2})(?=[A-Z][a-z])", "-", name)
        .replace("_", "-")
        .lower()
    )


def known(seam: str) -> list[str]:
    """Return every name that a seam resolves, in kebab case, Assay's own first."""
    return list(dict.fromkeys(_kebab(name) for name, get in _candidates(seam) if _nameable(seam, name, get)))


def _import(path: str) -> Any:
    module_name, _, attributes = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownName(f"cannot import {path!r}: {error}") from None
    return found


def _lookup(seam: str, name: str) -> Any:
    if ":" in name:
        return _import(name)
    wanted = _normal(name)
    for public, get in _candidates(seam):
        if wanted in _keys(seam, public):
            try:
                if _nameable(seam, public, get):
                    return get()
            except ImportError as error:
                raise MissingExtra(f"{name!r} ({seam}) needs a package that is not installed: {error}") from error
    available = {_normal(kebab): kebab for kebab in known(seam)}
    near = [available[key] for key in difflib.get_close_matches(wanted, available, n=4, cutoff=0.5)]
    near = near or list(available.values())[:8]
    raise UnknownName(
        f"unknown name {name!r} in {seam}; did you mean {', '.join(near) or 'nothing: the seam is empty'}?"
    )


def resolve(seam: str, spec: str | Callable[..., Any]) -> Callable[..., Any]:
    """Turn a name-spec into a callable with its arguments bound.

    Args:
        seam: "losses", "optim", "schedules", "models", "rules", "data", "probes", ...
        spec: A name-spec; anything else that is callable passes through.

    Returns:
        The object, or a `functools.partial` of it with the spec's arguments.

    Raises:
        UnknownName: If nothing of that name exists; the message lists the nearest names.
        InvalidInput: If the text is no name-spec or its arguments do not fit the object's signature.

    Example:
        >>> resolve("optim", "adamw(lr=0.1)").keywords
        {'lr': 0.1}
    """
    if not isinstance(spec, str):
        return spec
    parsed = parse(spec)
    target = _lookup(seam, parsed.name)
    _check_arguments(target, parsed, spec)
    return partial(target, *parsed.args, **parsed.kwargs) if parsed.args or parsed.kwargs else target


def _check_arguments(target: Any, parsed: Spec, text: str) -> None:
    """Refuse an argument that the object does not take, with the nearest one that it does."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for name in parsed.kwargs:
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=3, cutoff=0.4) or list(parameters)
            raise InvalidInput(f"{text!r}: {parsed.name} has no argument {name!r}; did you mean {', '.join(near)}?")
