"""The shape of the code base: tests mirror the source, functions and modules stay short, imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "assay"
MODULES = sorted(
    p for p in SOURCE.rglob("*.py") if p.name != "__init__.py" and not {"papers", "comparisons"} & {*p.parts}
)

LONGEST_FUNCTION = 60
LONGEST_MODULE = 400
# What may be longer, and why; for functions neither signature nor docstring counts.
LONG_MODULES: dict[str, str] = {
    "lab/expectations.py": "the eight expectations, half of it docstrings",
    "lab/judge.py": "one decision procedure, read from top to bottom",
}


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_functions_and_modules_are_short(path):
    """What cannot be read in one go is not read; exceptions are written down with their reason."""
    relative = str(path.relative_to(SOURCE))
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_MODULE or relative in LONG_MODULES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert _length(node) <= LONGEST_FUNCTION, node.name


# Private modules are tested through the public ones, conformance checks by being run on every part.
PUBLIC = [p for p in MODULES if not p.name.startswith("_") and "testing" not in p.parts]


@pytest.mark.parametrize("path", PUBLIC, ids=lambda path: str(path.relative_to(SOURCE)))
def test_tests_mirror_the_source(path):
    """A reader of a module must find its tests at the same place below tests/."""
    relative = path.relative_to(SOURCE)
    own = ROOT / "tests" / relative.parent / f"test_{path.stem}.py"
    package = ROOT / "tests" / relative.parent.parent / f"test_{path.parent.name}.py"
    assert own.exists() or package.exists(), f"no test for {relative}"


def test_the_written_exceptions_are_needed():
    """An exception for what is short again, or gone, would let it grow back unseen."""
    for relative in LONG_MODULES:
        assert len((SOURCE / relative).read_text(encoding="utf-8").splitlines()) > LONGEST_MODULE, relative


@pytest.mark.parametrize("path", PUBLIC, ids=lambda path: str(path.relative_to(SOURCE)))
def test_public_names_are_literal(path):
    """`__all__` is a seam's registry and is read without importing: it must be a literal list of names that exist."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lists = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and any(
            isinstance(t, ast.Name) and t.id == "__all__"
            for t in getattr(node, "targets", [getattr(node, "target", None)])
        )
    ]
    assert lists, "a public module lists its public names"
    hidden = path.stem in ast.literal_eval(lists[0]) and path.parent.name != "cli"
    assert not hidden, "a name equal to its module would be hidden by it"
