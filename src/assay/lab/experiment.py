"""The usual arm: data x model x loss x optimizer x learning rule x probes x budget, all by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Self

from assay.errors import InvalidInput
from assay.lab.arms import describe
from assay.lab.record import Record
from assay.names import Spec, parse
from assay.streams import Streams

__all__ = ["Experiment", "TuningPoint"]

Named = str | Callable[..., Any]
BUDGETS = ("epochs", "samples", "seconds")


@dataclass(frozen=True)
class Experiment:
    """One training run as plain data; calling it with random streams runs it.

    Every part is a name ("focal(gamma=3)", "package.module:Object") or a callable with an importable name. The budget
    is given in exactly one of `epochs`, `samples` or `seconds` (of training; evaluation and probes are not counted).

    Args:
        data: A loader of `assay.data`.
        model: A model of `assay.models`, called with (input_shape, outputs); a user's own may also take no argument.
        optimizer: An optimizer of `assay.optim` or `torch.optim`.
        loss: A loss of `assay.losses` or `torch.nn`; None takes the rule's own, else cross-entropy or, for targets
            that are no classes, MSE.
        transforms: What is put on the optimizer, such as "perp-grad".
        schedule: A scheduler of `torch.optim.lr_scheduler`, stepped once per epoch.
        rule: How a mini-batch becomes an update.
        probes: What is measured on the training data.
        epochs: Budget in passes over the training data.
        samples: Budget in training samples seen.
        seconds: Budget in seconds of training.
        batch_size: Samples per mini-batch; None is the whole training set.
        checkpoint: "last", or "best" to evaluate the state with the best validation score.
        evaluate_every: Epochs between evaluations on all three splits.
        probe_every: Epochs between the probes' measurements, or by probe's name, as `assay.Watch` has it (those that a
            mapping leaves out are measured once); None measures once, at the end. Never by the clock, so that the
            same seed gives the same record.
        count_cost: Whether to count the FLOPs and the bytes saved for backward of the first update.
        tune: Grid of values by hyper-parameter, such as `{"optimizer.lr": (0.01, 0.1)}`; the best point on
            validation data is the one that gets tested.

    Raises:
        InvalidInput: If the budget is not given exactly once, or a number is out of its range.
    """

    data: Named
    model: Named
    optimizer: Named = "adam(lr=1e-3)"
    loss: Named | None = None
    transforms: tuple[Named, ...] = ()
    schedule: Named | None = None
    rule: Named = "backprop"
    probes: tuple[Named, ...] = ()
    epochs: float | None = None
    samples: int | None = None
    seconds: float | None = None
    batch_size: int | None = 128
    checkpoint: str = "last"
    evaluate_every: float = 1
    probe_every: float | Mapping[str, float] | None = None
    count_cost: bool = False
    tune: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidInput(f"give the budget in exactly one of {', '.join(BUDGETS)}; got {given or 'none'}")
        probing = self.probe_every.values() if isinstance(self.probe_every, Mapping) else (self.probe_every,)
        positive = {name: (getattr(self, name),) for name in (given[0], "batch_size", "evaluate_every")}
        for name, values in (positive | {"probe_every": tuple(probing)}).items():
            for value in values:
                if value is not None and not value > 0:
                    raise InvalidInput(f"{name} must be above 0, not {value}")
        if self.checkpoint not in ("last", "best"):
            raise InvalidInput(f"checkpoint must be 'last' or 'best', not {self.checkpoint!r}")
        for name, values in self.tune.items():
            if not values:
                raise InvalidInput(f"tune[{name!r}] is empty; give at least one value")

    def __call__(self, streams: Streams) -> Record:
        """Train and evaluate once.

        Raises:
            InvalidInput: If the parts do not fit together.
        """
        from assay.lab.training import train

        return train(self, streams)

    def prepare(self) -> None:
        """Load what a trial needs, so that a worker's first trial is not charged with imports and data."""
        from assay.lab.training import rehearse

        rehearse(self)

    def describe(self) -> dict[str, Any]:
        """Return all settings that differ from "not used" as plain data."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: describe(value) for name, value in settings.items() if value not in (None, (), {}, False)}

    def but(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced; giving one budget drops the other."""
        if any(name in changes for name in BUDGETS):
            changes = {name: None for name in BUDGETS} | changes
        return replace(self, **changes)

    def tuning(self) -> list[TuningPoint] | None:
        """Return one candidate per point of the grid, or None where nothing is tuned."""
        if not self.tune:
            return None
        untuned = replace(self, tune={})
        return [
            TuningPoint(untuned, dict(zip(self.tune, values, strict=True)))
            for values in itertools.product(*self.tune.values())
        ]

    def with_overrides(self, overrides: Mapping[str, Any]) -> Experiment:
        """Return a copy in which "field" or "field.argument" has a new value.

        Raises:
            InvalidInput: If there is no such field, or it is not set.
        """
        changed: Experiment = self
        for path, value in overrides.items():
            name, _, argument = path.partition(".")
            if name not in {f.name for f in fields(self)}:
                raise InvalidInput(f"tune: an Experiment has no field {name!r}; in {path!r}")
            if argument:
                value = _with_argument(getattr(changed, name), argument, value, path)
            changed = replace(changed, **{name: value})
        return changed


def _with_argument(part: Any, argument: str, value: Any, path: str) -> Named:
    if part is None or isinstance(part, tuple):
        raise InvalidInput(f"tune: {path!r} needs the field to name one part, but it is {part!r}")
    if isinstance(part, str):
        spec = parse(part)
        return str(Spec(spec.name, spec.args, {**spec.kwargs, argument: value}))
    return partial(part, **{argument: value})


@dataclass(frozen=True)
class TuningPoint:
    """One point of an experiment's grid, evaluated on validation data only."""

    experiment: Experiment
    overrides: Mapping[str, Any]

    def __call__(self, streams: Streams) -> Record:
        """Train once; the record holds validation metrics and `validation_score`, and nothing of the test data."""
        from assay.lab.training import train

        return train(replace(self.final(), probes=(), count_cost=False), streams, validation_only=True)

    def prepare(self) -> None:
        """Load what a trial needs; see `Experiment.prepare`."""
        self.final().prepare()

    def describe(self) -> dict[str, Any]:
        """Return the experiment at this point as plain data."""
        return {"tuning": True} | replace(self.final(), probes=(), count_cost=False).describe()

    def final(self) -> Experiment:
        """Return the experiment at this point, without a grid."""
        return self.experiment.with_overrides(self.overrides)
