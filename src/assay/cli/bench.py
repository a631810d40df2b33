"""`assay bench`: run the side-by-side measurements of a source checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from assay.errors import AssayError, UnknownName

__all__ = ["command"]


def _folder() -> Path:
    folder = Path(__file__).parents[3] / "bench"
    if not folder.is_dir():
        raise AssayError(
            "the benchmarks are in the source repository, not in the installed package; clone it to run them"
        )
    return folder


def command(
    names: Annotated[list[str] | None, typer.Argument(help="Benchmarks to run; lists them if there are none.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few rounds.")] = False,
) -> None:
    """Run benchmarks; each writes its table and `bench/results/<name>.json`."""
    scripts = {path.stem: path for path in sorted(_folder().glob("[!_]*.py"))}
    if not names:
        for name in scripts:
            typer.echo(name)
        return
    for name in names:
        if name not in scripts:
            raise UnknownName(f"no benchmark {name!r}; there are {', '.join(scripts)}")
    for name in names:
        done = subprocess.run([sys.executable, str(scripts[name]), *(["--quick"] if quick else [])], check=False)
        if done.returncode:
            raise AssayError(f"benchmark {name!r} ended with exit code {done.returncode}")
