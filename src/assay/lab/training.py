"""One trial of an `Experiment`: build the parts from their streams, train within the budget, evaluate fairly.

The engine, not a part, owns the budget, the mini-batches, the choice of the checkpoint and every evaluation, so that
these are the same for all arms. Test data is looked at only by `_Evaluation`, and never while tuning.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assay.data.batching import batches
from assay.errors import AssayError, InvalidInput
from assay.lab._parts import (
    Setup,
    batch_size_of,
    build,
    building,
    check_budget,
    check_update,
    transformed,
    whole_epochs,
)
from assay.lab.cost import counted
from assay.lab.record import Record, Series
from assay.lab.resources import check_deadline
from assay.names import resolve
from assay.streams import Streams

if TYPE_CHECKING:
    from assay.data.dataset import Split
    from assay.lab.experiment import Experiment
    from assay.rules.rule import Phase

__all__ = ["check", "rehearse", "timed", "train"]

EVALUATION_BATCH = 2048
TIMED_BATCHES = 20
_rehearsed: set[str] = set()


def rehearse(experiment: Experiment) -> None:
    """Run one mini-batch of an experiment, once per process and combination of parts.

    What it imports, loads and caches would otherwise be charged to whichever trial comes first.
    """
    parts = str([experiment.describe().get(name) for name in ("data", "model", "rule", "loss", "probes", "count_cost")])
    if parts in _rehearsed:
        return
    _rehearsed.add(parts)
    # What is wrong with an arm is said by its trial.
    with suppress(AssayError):
        _trial(replace(experiment.but(samples=1), tune={}), Streams("rehearsal", 0))


def check(experiment: Experiment) -> None:
    """Build an experiment's parts and try them on each other, without changing a weight.

    Raises:
        InvalidInput: If the parts or the budget do not fit together: what a trial would raise, but before the first.
    """
    with torch.random.fork_rng(devices=[]):
        setup = build(experiment, Streams("rehearsal", 0))
        check_budget(experiment, setup)
        check_update(experiment, setup)


def timed(experiment: Experiment) -> tuple[float, dict[str, float]]:
    """Return the seconds that an epoch of training takes, and those of a measurement by probe, both warmed up."""
    rehearse(experiment)
    with torch.random.fork_rng(devices=[]):
        watch = build(experiment, Streams("rehearsal", 0)).watch
        for repetition in range(2 if watch else 0):
            watch.measure(repetition)
    short = replace(experiment.but(samples=TIMED_BATCHES * (experiment.batch_size or 1)), probes=(), tune={})
    resources = _trial(short, Streams("rehearsal", 0)).resources
    costs = {row["probe"]: row["last"] for row in watch.costs()} if watch else {}
    return resources["training_seconds"] / resources["epochs"], costs


def train(experiment: Experiment, streams: Streams, *, validation_only: bool = False) -> Record:
    """Run one trial.

    Args:
        experiment: What to train.
        streams: Where its randomness comes from.
        validation_only: Leave the test split alone, as tuning must.

    Returns:
        The final metrics, their series over epochs, and what the trial cost; status "diverged" if the loss became
        infinite or NaN.

    Raises:
        InvalidInput: If the parts or the budget do not fit together; said before training starts.
    """
    return _trial(experiment, streams, validation_only, budgeted=True)


def _trial(
    experiment: Experiment, streams: Streams, validation_only: bool = False, *, budgeted: bool = False
) -> Record:
    with torch.random.fork_rng(devices=[]):
        setup = build(experiment, streams)
        if budgeted:
            check_budget(experiment, setup)
        torch.manual_seed(streams.entropy("noise"))
        run = _Run(experiment, setup, validation_only)
        for phase in setup.rule.phases(whole_epochs(experiment, setup)):
            run.phase(phase, streams.torch("order") if run.order is None else run.order)
            if run.diverged:
                break
        return run.finish()


@dataclass
class _Run:
    """The state of a running trial: what was spent, what was measured, the best state so far."""

    experiment: Experiment
    setup: Setup
    validation_only: bool
    order: torch.Generator | None = None
    seen: float = 0.0
    training_seconds: float = 0.0
    share: float = 0.0
    diverged: bool = False
    cost: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    best: tuple[float, dict[str, Any]] | None = None
    next_evaluation: float = 0.0
    next_probe: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.samples = len(self.setup.dataset.train.inputs)
        self.batch_size = batch_size_of(self.experiment, self.setup.rule)
        self.total_epochs = whole_epochs(self.experiment, self.setup)
        self.next_evaluation = self.experiment.evaluate_every
        self.next_probe = dict(self._probe_every())

    @property
    def epoch(self) -> float:
        return self.seen / self.samples

    def spent(self) -> float:
        """Return the share of the budget that is used up."""
        experiment = self.experiment
        if experiment.seconds is not None:
            return self.training_seconds / experiment.seconds
        # an Experiment without seconds and samples has epochs, which it checks itself
        return self.seen / (experiment.samples or experiment.epochs * self.samples)  # type: ignore[operator]

    def phase(self, phase: Phase, order: torch.Generator) -> None:
        """Train one phase of the rule, which gets its share of the budget."""
        self.order = order
        self.share += phase.epochs / self.total_epochs
        if self.share > 1 + 1e-9:
            raise InvalidInput(f"rule {self.experiment.rule!r} asks for more than the budget of its {self.experiment}")
        with building("optimizer", self.experiment.optimizer):
            optimizer = resolve("optim", self.experiment.optimizer)(list(phase.parameters))
        transformed(self.experiment, optimizer, self.setup.noise)
        schedule = resolve("schedules", self.experiment.schedule)(optimizer) if self.experiment.schedule else None
        while self.spent() < self.share - 1e-9 and not self.diverged:
            self._epoch(optimizer)
            if schedule is not None:
                schedule.step()
            check_deadline()
            self._measure_when_due()

    def _epoch(self, optimizer: torch.optim.Optimizer) -> None:
        rule, experiment = self.setup.rule, self.experiment
        rule.train()
        start, before = time.perf_counter(), self.training_seconds
        logs: dict[str, Tensor] = {}
        for x, y in batches(self.setup.dataset.train, self.batch_size, self.order):
            if experiment.count_cost and not self.cost:
                with counted(self.cost, rule):
                    logs = rule.step(x, y, optimizer)
            else:
                logs = rule.step(x, y, optimizer)
            self.seen += len(x)
            self.training_seconds = before + time.perf_counter() - start
            if self.spent() >= self.share - 1e-9:
                break
        self.diverged = "loss" in logs and not math.isfinite(float(logs["loss"]))

    def _measure_when_due(self) -> None:
        if self.epoch >= self.next_evaluation - 1e-9:
            self.next_evaluation += self.experiment.evaluate_every
            self._evaluate()
        due = [name for name, epoch in self.next_probe.items() if self.epoch >= epoch - 1e-9]
        if due and not self.diverged:
            for name in due:
                self.next_probe[name] += self._probe_every()[name]
            self._log(self.setup.watch.measure(self.epoch, only=due))

    def _probe_every(self) -> dict[str, float]:
        """Return the epochs between measurements of each probe that is measured before the end."""
        if self.setup.watch is None:
            return {}
        names, every = self.setup.watch.names, self.experiment.probe_every
        if isinstance(every, Mapping):
            if unknown := sorted(set(every) - set(names)):
                raise InvalidInput(f"probe_every names {unknown[0]!r}, but the probes are {', '.join(names)}")
            return dict(every)
        return dict.fromkeys(names, every) if every else {}

    def _log(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.history.setdefault(name, []).append((self.epoch, value))

    def _evaluate(self) -> dict[str, float]:
        evaluation = _Evaluation(self.setup, self.validation_only)
        values = evaluation.metrics()
        self._log(values)
        score = evaluation.score(values)
        if self.experiment.checkpoint == "best" and (self.best is None or score > self.best[0]):
            self.best = (score, copy.deepcopy(self.setup.rule.state_dict()))
        return values

    def finish(self) -> Record:
        """Evaluate the chosen state and return the record."""
        if self.best is not None:
            self.setup.rule.load_state_dict(self.best[1])
        evaluation = _Evaluation(self.setup, self.validation_only)
        metrics = evaluation.metrics()
        if self.experiment.checkpoint == "last" and not self._just_logged():
            self._log(metrics)
        if self.validation_only:
            metrics["validation_score"] = evaluation.score(metrics)
        if self.setup.watch is not None and not self.diverged:
            measured = self.setup.watch.measure(self.epoch)
            metrics |= measured
            if self.experiment.checkpoint == "last":
                self._log({k: v for k, v in measured.items() if self.history.get(k, [(-1, 0)])[-1][0] != self.epoch})
        series = {
            name: Series(tuple(step for step, _ in points), tuple(value for _, value in points))
            for name, points in self.history.items()
        }
        resources = {
            "parameters": float(sum(p.numel() for p in self.setup.rule.parameters())),
            "epochs": self.epoch,
            "samples": float(self.seen),
            "training_seconds": self.training_seconds,
            **self.cost,
        }
        status = "diverged" if self.diverged else "done"
        return Record(metrics=metrics, series=series, resources=resources, status=status)

    def _just_logged(self) -> bool:
        return any(
            points[-1][0] == self.epoch for name, points in self.history.items() if name.startswith("validation")
        )


@dataclass
class _Evaluation:
    """Evaluates a rule's predictions on the splits."""

    setup: Setup
    validation_only: bool

    def metrics(self) -> dict[str, float]:
        dataset = self.setup.dataset
        splits = {"train": dataset.train, "validation": dataset.validation}
        if not self.validation_only:
            splits["test"] = dataset.test
        self.setup.rule.eval()
        return {
            f"{name}_{quantity}": value
            for name, split in splits.items()
            if len(split.inputs)
            for quantity, value in self._on(split).items()
        }

    @torch.no_grad()
    def _on(self, split: Split) -> dict[str, float]:
        parts = [self.setup.rule.predict(x) for x in split.inputs.split(EVALUATION_BATCH)]
        scores = torch.cat(parts)
        values: dict[str, float] = {}
        if self.setup.loss is not None:
            values["loss"] = float(self.setup.loss(scores, split.targets))
        if self.setup.dataset.num_classes is not None:
            values["accuracy"] = float((scores.argmax(-1) == split.targets).double().mean())
        return values

    def score(self, metrics: dict[str, float]) -> float:
        """Return what a checkpoint or a tuning point is chosen by; higher is better."""
        if "validation_accuracy" in metrics:
            return metrics["validation_accuracy"]
        if "validation_loss" not in metrics:
            raise InvalidInput(
                f"{self.setup.dataset.name!r} has no validation samples to choose by; give it some, "
                "or use checkpoint='last' and no tuning grid"
            )
        return -metrics["validation_loss"]
