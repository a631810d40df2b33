"""Lazy exports: a seam's public names are read from its modules' literal `__all__`, and imported when first used.

So no central list has to be edited when a part is added, and `import assay.graph` works without the extra that only
some of its modules need. Type checkers and editors read the generated `__init__.pyi` beside each seam.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

__all__ = ["lazy_exports", "public_names"]


def _literal_all(path: Path) -> list[str]:
    """Return the names in a module's literal `__all__` without importing it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (module name, file that holds its `__all__`) for the folder's public modules and packages."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(("_", ".")):
            continue
        if path.suffix == ".py":
            yield path.stem, path
        elif (path / "__init__.py").exists():
            yield path.name, path / "__init__.py"


@cache
def public_names(folder: str) -> dict[str, str]:
    """Map every public name of a seam's folder to the module that defines it.

    Raises:
        ImportError: If two modules export the same name, or a name is that of its module.
    """
    owners: dict[str, str] = {}
    for module, path in _modules(Path(folder)):
        for name in _literal_all(path):
            if name == module:
                raise ImportError(
                    f"{path}: importing the module {module!r} would hide the public name; rename one of them"
                )
            if name in owners:
                raise ImportError(f"{path}: {name!r} is exported by {owners[name]!r} too; rename one of them")
            owners[name] = module
    return owners


def lazy_exports(package: str, folder: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return the `__getattr__`, `__dir__` and `__all__` of a seam.

    Args:
        package: The seam's dotted name, `__name__` in its `__init__`.
        folder: The seam's folder, `__path__[0]` in its `__init__`.

    Returns:
        Three objects to bind in the seam's namespace (PEP 562).
    """
    owners = public_names(folder)

    def __getattr__(name: str) -> object:  # noqa: N807 - PEP 562 fixes this name
        if name not in owners:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{owners[name]}"), name)

    def __dir__() -> list[str]:  # noqa: N807 - PEP 562 fixes this name
        return sorted(owners)

    return __getattr__, __dir__, sorted(owners)
