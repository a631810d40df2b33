"""The `assay` command. Each verb's module is imported only when it is called, so that `assay list` starts fast."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from assay.errors import AssayError, UnknownName

__all__ = ["VERBS", "app", "main"]

VERBS = {
    "list": "Papers, their parts and verdicts.",
    "show": "One paper: its card, its study's plan, its verdict.",
    "run": "Put papers' claims to the test.",
    "report": "Build the HTML report from stored results.",
    "train": "Combine any data, model, loss, optimizer, rule and probes.",
    "bench": "Measure side by side with peers.",
    "data": "What data sets there are, and where.",
    "doctor": "Versions, cores, extras, data and store.",
}


class _LazyVerbs(TyperGroup):
    """Knows all verbs by name and imports a verb's module when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        verb = typer.Typer(add_completion=False, rich_markup_mode=None)
        verb.command(cmd_name, help=VERBS[cmd_name])(importlib.import_module(f"assay.cli.{cmd_name}").command)
        return typer.main.get_command(verb)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, n=2, cutoff=0.4) or list(VERBS)
            raise UnknownName(f"no command {args[0]!r}; did you mean {', '.join(near)}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


app = typer.Typer(
    cls=_LazyVerbs, add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False
)


def _version(value: bool) -> None:
    if value:
        from assay import __version__

        typer.echo(f"assay {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Training papers as working parts, probes that show what a network learns, and claims put to a fair test."""


def main() -> None:
    """Run the command line; an error that a user can act on is one line and exit code 2."""
    try:
        app()
    except AssayError as error:
        if os.environ.get("ASSAY_DEBUG"):
            raise
        print(f"assay: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
