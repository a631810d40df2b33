"""Tiny arms that worker processes can import."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from assay.errors import MissingData
from assay.lab.record import Record, Series
from assay.lab.resources import check_deadline
from assay.lab.study import Study
from assay.streams import Streams


@dataclass(frozen=True)
class Draw:
    """Draws from the trial's streams; needs no torch, so its workers start quickly."""

    shift: float = 0.0
    seconds: float = 0.0
    log: str = ""
    uses_torch: ClassVar[bool] = False

    def __call__(self, streams: Streams) -> Record:
        if self.log:
            append(self.log, f"{self.shift} {streams.seed}")
        time.sleep(self.seconds)
        draws = streams.numpy("noise").normal(size=5)
        return Record(
            metrics={"value": float(draws.mean()) + self.shift, "undefined": float("nan"), "bound": float("-inf")},
            series={"draw": Series(tuple(range(5)), tuple(draws.tolist()), "draw")},
            arrays={"draws": draws},
            resources={"draws": 5.0},
        )

    def describe(self) -> dict[str, Any]:
        return {"arm": "draw", "shift": self.shift}

    def but(self, **changes: Any) -> Self:
        return replace(self, **changes)


@dataclass(frozen=True)
class TorchDraw(Draw):
    """Depends on the global generators and on threads of torch, as other people's code may."""

    uses_torch: ClassVar[bool] = True

    def __call__(self, streams: Streams) -> Record:
        import torch

        big = torch.randn(300, 300)
        layer = torch.nn.Linear(300, 300)
        loss = layer(big).square().sum()
        loss.backward()
        values = {
            "loss": float(loss.detach()),
            "norm": float(layer.weight.grad.norm()),
            "python": random.random(),
            "numpy": float(np.random.random() + (np.ones((200, 200)) @ np.random.random((200, 200))).sum()),
            "threads": float(torch.get_num_threads()),
            "variable": float(os.environ["OMP_NUM_THREADS"]),
        }
        return Record(metrics=values)

    def describe(self) -> dict[str, Any]:
        return {"arm": "torch draw", "shift": self.shift}


@dataclass(frozen=True)
class Prepared(Draw):
    """Prepares itself at length, and draws while it does so."""

    def prepare(self) -> None:
        time.sleep(0.3)
        self.but(log="")(Streams("preparation", 0))

    def describe(self) -> dict[str, Any]:
        return {"arm": "prepared", "shift": self.shift}


@dataclass(frozen=True)
class Misbehave(Draw):
    """Goes wrong in one of many ways, at the seeds given."""

    how: str = "bug"
    seeds: tuple[int, ...] = (1,)

    def __call__(self, streams: Streams) -> Record:
        if streams.seed not in self.seeds:
            return super().__call__(streams)
        # So that the trials beside this one are finished by then.
        time.sleep(5 * self.seconds)
        return getattr(self, f"_{self.how}")()

    def describe(self) -> dict[str, Any]:
        return {"arm": "misbehave", "how": self.how}

    def _bug(self) -> Record:
        raise Unpicklable("boom", 1)

    def _missing(self) -> Record:
        raise MissingData("put the file here")

    def _exit(self) -> Record:
        raise SystemExit(3)

    def _diverge(self) -> Record:
        raise FloatingPointError("loss is NaN")

    def _die(self) -> Record:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def _interrupt(self) -> Record:
        raise KeyboardInterrupt

    def _nothing(self) -> Any:
        return {"value": 1.0}

    def _unstorable(self) -> Record:
        return Record(metrics={"value": object()})  # type: ignore[dict-item]

    def _objects(self) -> Record:
        return Record(metrics={}, arrays={"a": np.array([object()])})

    def _hang(self) -> Record:
        try:
            while True:
                time.sleep(0.01)
        except Exception:
            raise AssertionError("an arm's own except Exception caught the timeout") from None

    def _cooperate(self) -> Record:
        while True:
            time.sleep(0.01)
            check_deadline()


class Unpicklable(Exception):
    """An exception that cannot be unpickled, as those with two required arguments cannot."""

    def __init__(self, first: str, second: int) -> None:
        super().__init__(first)


@dataclass(frozen=True)
class Tuned(Draw):
    """Has a grid over its shift; the best on validation data is where shift is nearest to `best`."""

    grid: tuple[float, ...] = ()
    best: float = 0.3
    diverges: tuple[float, ...] = ()

    def tuning(self) -> list[Point] | None:
        return [Point(self, {"shift": shift}) for shift in self.grid] or None

    def describe(self) -> dict[str, Any]:
        return {"arm": "tuned", "shift": self.shift, "grid": list(self.grid)}


@dataclass(frozen=True)
class Point:
    """A candidate; at a shift of 7 it forgets its score, at 8 the score is NaN."""

    arm: Tuned
    overrides: Mapping[str, Any] = field(default_factory=dict)
    uses_torch: ClassVar[bool] = False

    def __call__(self, streams: Streams) -> Record:
        shift = self.overrides["shift"]
        if self.arm.log:
            append(self.arm.log, f"tune {shift} {streams.seed}")
        if shift in self.arm.diverges:
            raise FloatingPointError
        if shift == 7.0:
            return Record(metrics={"other": 1.0})
        score = float("nan") if shift == 8.0 else -abs(shift - self.arm.best) + streams.seed % 2
        return Record(metrics={"validation_score": score})

    def describe(self) -> dict[str, Any]:
        return {"tuning": True, "shift": self.overrides["shift"]}

    def final(self) -> Tuned:
        return replace(self.arm, grid=(), **self.overrides)


def append(path: str, line: str) -> None:
    """Append a line at once, which several processes can do side by side."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def lines(path: Path) -> list[str]:
    """Return what `append` wrote."""
    return path.read_text().splitlines() if path.exists() else []


def make_study(arms: Mapping[str, Any], **options: Any) -> Study:
    """Return a study of the given arms."""
    return Study(claim="A claim.", arms=dict(arms), limits="Everything.", **options)


def outcome(record: Record) -> tuple[Any, ...]:
    """Return everything of a record that has to be the same in every run, compared bit for bit."""
    plain = record.to_plain()
    arrays = {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in record.arrays.items()}
    return plain["status"], plain["metrics"], plain["series"], arrays
