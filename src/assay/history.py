"""What was measured over a training run: rows for a table, a figure, a JSON file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from assay.errors import InvalidInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["History"]

_FORMAT, _VERSION = "assay-watch", 1


class History:
    """Quantities measured over the steps of a training run.

    Example:
        >>> history = History()
        >>> history.record(0, {"nc1": 2.0})
        >>> history.frame()
        [{'step': 0, 'quantity': 'nc1', 'value': 2.0}]
    """

    def __init__(self) -> None:
        self.steps: dict[float, dict[str, float]] = {}
        self.accounts: dict[str, Any] = {}  # what `assay.Watch` knows of the time that probes took

    def record(self, step: float, values: Mapping[str, float]) -> None:
        """Keep the values of a step; a step that is measured again replaces what was there."""
        self.steps[step] = dict(values)

    def frame(self) -> list[dict[str, Any]]:
        """Return rows with "step", "quantity" and "value" in the order of steps, ready for `pandas.DataFrame`."""
        return [
            {"step": step, "quantity": quantity, "value": value}
            for step, values in sorted(self.steps.items())
            for quantity, value in values.items()
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history as JSON, all at once: an interrupted write leaves the old file."""
        steps = [{"step": s, "values": {k: _to_number(v) for k, v in q.items()}} for s, q in sorted(self.steps.items())]
        partial = Path(f"{os.fspath(path)}.{os.getpid()}.partial")
        plain = {"format": _FORMAT, "version": _VERSION, "steps": steps, "accounts": self.accounts}
        partial.write_text(json.dumps(plain), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; numbers come back bit for bit, NaN and infinity too.

        Raises:
            InvalidInput: If the file is not such a history or is of a newer version.
            FileNotFoundError: If there is no such file.
        """
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
            if plain["format"] != _FORMAT or plain["version"] > _VERSION:
                raise InvalidInput(f"{path}: version {plain['version']} of {plain['format']!r} can't be read")
            history = cls()
            for row in plain["steps"]:
                history.record(row["step"], {k: float(v) for k, v in row["values"].items()})
            history.accounts = dict(plain.get("accounts") or {})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(f"{path} is no saved history of assay.Watch: {error}") from None
        return history

    def plot(self) -> Figure:
        """Return a figure with one small plot per quantity; a quantity's layers share one."""
        from matplotlib.figure import Figure

        panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for row in self.frame():
            name, _, layer = row["quantity"].partition("/")
            panels.setdefault(name, {}).setdefault(layer, []).append((row["step"], row["value"]))
        columns = min(3, max(1, len(panels)))
        rows = math.ceil(len(panels) / columns) or 1
        figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
        for index, (name, lines) in enumerate(panels.items()):
            axes = figure.add_subplot(rows, columns, index + 1, title=name, xlabel="step")
            for layer, points in lines.items():
                axes.plot(*zip(*points, strict=True), marker=".", label=layer or "all", gid=f"{name}/{layer}")
            if len(lines) > 1:
                axes.legend(fontsize="x-small")
            if _spans_decades([value for points in lines.values() for _, value in points]):
                axes.set_yscale("log")
        return figure


def _to_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: they travel as strings."""
    return value if math.isfinite(value) else repr(value)


def _spans_decades(values: list[float]) -> bool:
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > 30 * min(finite)
