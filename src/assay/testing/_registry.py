"""Finds the checks of a seam and runs them on a factory."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection

from assay.errors import UnknownName

SEAMS = ("losses", "optim", "nn", "rules", "probes", "kernels")

Factory = Callable[[], object]
Check = Callable[[Factory], None]


def checks(seam: str) -> dict[str, Check]:
    """Return the conformance checks of a seam by name.

    Raises:
        UnknownName: If the seam has no conformance checks.
    """
    if seam not in SEAMS:
        raise UnknownName(f"no conformance checks for seam {seam!r}; there are checks for {', '.join(SEAMS)}")
    return dict(importlib.import_module(f"assay.testing.{seam}").CHECKS)


def cases(seam: str) -> dict[str, Factory]:
    """Return tiny settings of Assay's own parts of a seam by name."""
    checks(seam)
    return dict(importlib.import_module(f"assay.testing.{seam}").CASES)


def check(seam: str, factory: Factory, *, skip: Collection[str] = ()) -> None:
    """Run every check of a seam on a part.

    Args:
        seam: One of `SEAMS`.
        factory: Builds the part in a tiny setting, as the seam's own `CASES` do; called once or more per check.
        skip: Names of checks that this part is known not to pass.

    Raises:
        AssertionError: With the names and messages of all checks that failed.
    """
    failures = []
    for name, run in checks(seam).items():
        if name in skip:
            continue
        try:
            run(factory)
        except AssertionError as error:
            failures.append(f"{name}: {error}")
    if failures:
        raise AssertionError(f"{len(failures)} conformance check(s) of {seam!r} failed:\n  " + "\n  ".join(failures))
