"""Tables and progress that several verbs print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["console", "number", "progress", "verdict_table"]

_MARKS = {"holds": "[green]holds[/]", "fails": "[red]fails[/]", "inconclusive": "[yellow]inconclusive[/]"}
errors = Console(stderr=True)
console = Console()


def number(value: float | None) -> str:
    """Format a number for a table: four significant digits, a dash for nothing."""
    return "-" if value is None or value != value else f"{value:.4g}"


def verdict_table(result: dict[str, Any]) -> Table:
    """Return a study's verdict as a table with every expectation's effect and interval."""
    verdict = result["verdict"]
    title = (
        f"[bold]{escape(result['paper'])}[/] ({result['scale']}, {result['seeds']} seeds): {_MARKS[verdict['status']]}"
    )
    table = Table(title=title, title_justify="left", title_style="", header_style="dim", box=None, pad_edge=False)
    table.add_column("expectation", overflow="fold")
    table.add_column("effect", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for outcome in verdict["outcomes"]:
        low, high = outcome["interval"] or (None, None)
        table.add_row(
            escape(outcome["text"]),
            number(outcome["effect"]),
            f"{number(low)} .. {number(high)}",
            _MARKS[outcome["status"]],
        )
    return table


@contextmanager
def progress(title: str, *, shown: bool) -> Iterator[Callable[[int, int, Any], None] | None]:
    """Draw a progress bar on standard error for the runner's (done, total, trial) events."""
    if not shown:
        yield None
        return
    if not errors.is_terminal:
        yield _lines(title)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(escape(title), total=None)

        def update(done: int, total: int, trial: Any) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def _lines(title: str) -> Callable[[int, int, Any], None]:
    """Return a progress function for logs: a line whenever another quarter of the trials is done."""
    shown = 0

    def update(done: int, total: int, trial: Any) -> None:
        nonlocal shown
        if 4 * done // total > shown:
            shown = 4 * done // total
            errors.print(f"{title}: {done} of {total} trials", highlight=False, markup=False)

    return update
