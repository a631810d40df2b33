"""Watch your own model learn: measure it in your own loop, with as many probes as you like and no trace left on it.

One forward pass per mini-batch serves every probe that reads features, scores, targets or layers' outputs (`consumes`);
a probe with a `follow_up` gets a second pass over the data, and a probe with `measure(view, batches)` runs its own. All
of it in eval mode, inside `assay.probes._trace.untouched`.

Cost: one forward pass over `data` per measurement (two with NC4), plus what each probe says of itself; `Watch.costs`
tells what it really was, and `max_overhead` keeps it within a budget (see `assay._budget` for the rule). With a
learning rule the scores and the features are two calls to the rule.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from assay._budget import Ledger, share
from assay.errors import InvalidInput
from assay.history import History
from assay.names import parse, resolve
from assay.probes._batches import Batches
from assay.probes._trace import untouched
from assay.probes.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Watch"]


class Watch:
    """Measures a network while it trains.

    Args:
        model: The network; see `assay.probes.View` for what it must return.
        probes: Names ("neural-collapse", "softmax-collapse(dtype='float16')") or probe objects.
        data: What to measure on, usually a fixed part of the training data: a `DataLoader`, a list of (inputs, targets)
            batches or of mappings with "labels", a pair of tensors, or anything with `inputs` and `targets`.
        rule: The learning rule, where it predicts in its own way.
        loss: Maps scores and targets to the mean loss, for probes that differentiate; cross-entropy if not given.
        scores: Picks the class scores out of what a model with several outputs returns.
        every: `measure(step)` measures only if the step is a multiple of this; a mapping gives it by probe
            (`{"hessian-spectrum": 100}`, others every time). The same steps in every run, whatever the clock says.
        max_overhead: Probing time over training time that is not to be exceeded, such as 0.1: a probe that the budget
            does not allow yet is left out of a measurement. Training time is what passes between measurements. The
            clock then decides which steps have a value; None measures at every step that is due.
        batch_size: Samples per forward pass where `data` is not in batches already.
        clock: Tells the time in seconds.

    Attributes:
        history: Everything measured so far.
        skipped: Why a quantity of the last measurement is NaN, by name.
        deferred: The probes that the budget left out of the last measurement.
        probes: The probes that were built. `every`, `deferred` and `costs` call them by their names, a class's in kebab
            case; the second of a name has "-2" behind it.

    Raises:
        InvalidInput: If there is no data, a probe is none, or an interval or the budget is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = (torch.eye(2).repeat(4, 1), torch.tensor([0, 1]).repeat(4))
        >>> watch = Watch(model, probes=["neural-collapse"], data=data)
        >>> values = watch.measure(step=0)
        >>> "nc1" in values, [row["measurements"] for row in watch.costs()]
        (True, [1])
    """

    def __init__(
        self,
        model: nn.Module,
        probes: Sequence[Any] = ("neural-collapse",),
        data: Any = None,
        *,
        rule: Any = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        scores: Callable[[Any], Tensor] | None = None,
        every: int | Mapping[str, int] = 1,
        max_overhead: float | None = None,
        batch_size: int = 512,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if batch_size < 1:
            raise InvalidInput(f"batch_size must be at least 1, not {batch_size}")
        self.view = View(model, rule=rule, loss=loss, scores=scores)
        self._named = _named([probes] if isinstance(probes, str) else probes)
        self.probes = list(self._named.values())
        self.batches = Batches(data, batch_size, self.view)
        self.every = _intervals(every, self._named)
        self.history = History()
        self.skipped: dict[str, str] = {}
        self.deferred: tuple[str, ...] = ()
        self._measures: dict[str, str] = {}
        self._clock = clock
        self._trained_since: float | None = None
        self._ledger = Ledger({name: bool(getattr(p, "dear", False)) for name, p in self._named.items()}, None)
        self.max_overhead = max_overhead

    @property
    def max_overhead(self) -> float | None:
        """The budget, as given; it can be changed while training runs."""
        return self._ledger.budget

    @max_overhead.setter
    def max_overhead(self, value: float | None) -> None:
        if value is not None and not 0 < value < math.inf:
            raise InvalidInput(f"max_overhead must be above 0, such as 0.1 for a tenth of training time, not {value}")
        self._ledger.budget = value

    @property
    def names(self) -> tuple[str, ...]:
        """The probes' names, in their order."""
        return tuple(self._named)

    @property
    def overhead(self) -> float:
        """Probing time over training time so far; the first measurement, which is slower, is in it."""
        return share(self._ledger.probing, self._ledger.training)

    def costs(self) -> list[dict[str, Any]]:
        """Return a row per probe, ready for `pandas.DataFrame`.

        Returns:
            "probe", "dear", "measurements", "seconds" and "overhead" (in all, and over training time), "last" (seconds
            of the last measurement). A forward pass is shared in equal parts by those that read it.
        """
        return self._ledger.rows()

    def measure(self, step: float, *, only: Sequence[str] | None = None) -> dict[str, float]:
        """Measure now, and keep it in the history.

        Args:
            step: Where training is, in whatever unit the caller counts.
            only: Names of the probes to measure, whatever `every` says.

        Returns:
            Quantities by name, NaN where undefined (`skipped` says why). Quantities of a probe that is not due at this
            step, or that the budget leaves out, are absent; empty if none is due.

        Raises:
            InvalidInput: If the model, the data and the probes do not fit, or two probes measure the same quantity.
        """
        due = [n for n in self._named if not self._between(n, step)] if only is None else self._known(only)
        if not due:
            return {}
        start = self._now()
        if self._trained_since is not None:
            self._ledger.trained(start - self._trained_since)
        self._trained_since = start
        sharing = [name for name in due if isinstance(self._named[name], Metric)]
        chosen = self._agreed(self._ledger.affordable(due, sharing))
        self.deferred = tuple(name for name in due if name not in chosen)
        if not chosen:
            return {}
        try:
            values = self._measured(chosen, start)
        finally:
            self._trained_since = self._now()
        self.history.record(step, values)
        return values

    def _between(self, name: str, step: float) -> bool:
        every = self.every.get(name, 1)
        return every > 1 and step % every != 0  # with 1, fractional steps are measured too

    def _known(self, only: Sequence[str]) -> list[str]:
        if unknown := sorted(set(only) - set(self._named)):
            raise InvalidInput(f"no probe is called {unknown[0]!r}; there are {', '.join(self._named)}")
        return [name for name in self._named if name in only]

    def _now(self) -> float:
        if self.view.device.type == "cuda":  # training's kernels may still be under way
            torch.cuda.synchronize(self.view.device)
        return self._clock()

    def _agreed(self, chosen: list[str]) -> list[str]:
        """Let the first process decide where processes reduce together: their clocks differ."""
        together = any(getattr(probe, "sync_on_compute", False) for probe in self.probes)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.max_overhead is None or not together or not distributed:
            return chosen
        told: list[Any] = [chosen]
        torch.distributed.broadcast_object_list(told, src=0, device=self.view.device)
        return list(told[0])

    def _measured(self, chosen: list[str], start: float) -> dict[str, float]:
        self.skipped = {}
        values: dict[str, float] = {}
        metrics = {name: p for name in chosen if isinstance(p := self._named[name], Metric)}
        spent = _Spent(dict.fromkeys(chosen, 0.0))
        with untouched(*self.view.modules):
            for module in self.view.modules:
                module.eval()
            for name, found in (*self._stream(metrics, spent), *self._run(chosen, spent)):
                self._claim(name, found)
                values |= found
        self.skipped = {key: reason for key, reason in self.skipped.items() if math.isnan(values.get(key, 0.0))}
        rest = self._now() - start - spent.forward_pass - sum(spent.own.values())  # the guard around it all
        self._ledger.charge({n: s + rest / len(chosen) for n, s in spent.own.items()}, metrics, spent.forward_pass)
        return values

    def _claim(self, name: str, found: Mapping[str, float]) -> None:
        """Refuse a quantity that another probe measures, also at another step."""
        if repeated := sorted(key for key in found if self._measures.setdefault(key, name) != name):
            raise InvalidInput(f"two probes measure {', '.join(repeated)}; leave one of them out")

    def frame(self) -> list[dict[str, Any]]:
        """Return all measurements as rows with "step", "quantity" and "value", ready for `pandas.DataFrame`."""
        return self.history.frame()

    def plot(self) -> Figure:
        """Return a figure with one small plot per quantity over the steps."""
        return self.history.plot()

    def figures(self) -> dict[str, Figure]:
        """Return the pictures of their last measurement that probes offer (`figure()`), by probe.

        A probe that was not measured yet has none.
        """
        measured = {row["probe"] for row in self.costs() if row["measurements"]}
        return {n: p.figure() for n, p in self._named.items() if n in measured and callable(getattr(p, "figure", None))}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history and the account of time as JSON; `load` or `assay.history.History.load` reads it."""
        self.history.accounts = self._ledger.to_plain()
        self.history.save(path)

    def load(self, path: str | os.PathLike[str]) -> Self:
        """Take over a saved history, so that a restarted run goes on where it was; return the watch.

        Raises:
            InvalidInput: If the file is not such a history or is of a newer version.
            FileNotFoundError: If there is no such file.
        """
        self.history = History.load(path)
        try:
            if self.history.accounts:
                self._ledger.restore(self.history.accounts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(f"{path}: its account of time cannot be read ({error}); remove it") from None
        self._trained_since = None
        return self

    def _stream(self, metrics: dict[str, Any], spent: _Spent) -> list[tuple[str, dict[str, float]]]:
        """Feed all streaming probes from one pass, and those that ask for it from a second one."""
        if not metrics:
            return []
        start, before = self._now(), sum(spent.own.values())
        results = self._pass(metrics, spent)
        spent.forward_pass = self._now() - start - (sum(spent.own.values()) - before)
        followers = {n: f for n, m in metrics.items() if (f := getattr(m, "follow_up", lambda: None)()) is not None}
        if followers:
            start, before = self._now(), sum(spent.own.values())
            for name, found in self._pass(followers, spent).items():
                results[name] |= found
            rest = self._now() - start - (sum(spent.own.values()) - before)
            for name in followers:
                spent.own[name] += rest / len(followers)
        return list(results.items())

    @torch.no_grad()
    def _pass(self, metrics: dict[str, Any], spent: _Spent) -> dict[str, dict[str, float]]:
        wanted = {name for metric in metrics.values() for name in metric.consumes}
        layers = {n: list(m.layers(self.view)) for n, m in metrics.items() if "activations" in m.consumes}
        for metric in metrics.values():
            metric.to(self.view.device).reset()
        for x, y in self.batches:
            every_layer = [layer for names in layers.values() for layer in names]
            observed, caught = self.view.observe_layers(x, every_layer, features=bool(wanted & {"features", "head"}))
            seen = {**observed._asdict(), "targets": y}
            for name, metric in metrics.items():
                seen["activations"] = _of(layers.get(name, ()), caught)
                start = self._now()
                metric.update(**{key: seen[key] for key in metric.consumes})
                spent.own[name] += self._now() - start
        results = {}
        for name, metric in metrics.items():
            start = self._now()
            results[name] = metric.compute()
            self.skipped |= getattr(metric, "skipped", {})
            metric.reset()
            spent.own[name] += self._now() - start
        return results

    def _run(self, chosen: list[str], spent: _Spent) -> Iterator[tuple[str, dict[str, float]]]:
        """Run the probes that take the network itself."""
        for name in chosen:
            probe = self._named[name]
            if not isinstance(probe, Metric):
                start = self._now()
                found = probe.measure(self.view, self.batches)
                spent.own[name] += self._now() - start
                self.skipped |= getattr(probe, "skipped", {})
                yield name, found


class _Spent:
    """Seconds of one measurement: by probe, and of the forward pass that streaming probes share."""

    def __init__(self, own: dict[str, float]) -> None:
        self.own, self.forward_pass = own, 0.0


def _of(layers: Sequence[str], caught: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of some layers, their later runs ("name#2") among them."""
    return {key: output for key, output in caught.items() if key in layers or key.rpartition("#")[0] in layers}


def _named(probes: Sequence[Any]) -> dict[str, Any]:
    """Build the probes and name them as a spec would: "neural-collapse"; a second one is "neural-collapse-2"."""
    named: dict[str, Any] = {}
    for each in probes:
        probe = _built(each)
        name = parse(each).name if isinstance(each, str) else _kebab(type(probe).__name__)
        count = sum(other == name or other.rpartition("-")[0] == name for other in named)
        named[f"{name}-{count + 1}" if count else name] = probe
    return named


def _kebab(name: str) -> str:
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")


def _intervals(every: int | Mapping[str, int], probes: Mapping[str, Any]) -> dict[str, int]:
    given = dict(every) if isinstance(every, Mapping) else dict.fromkeys(probes, every)
    if unknown := sorted(set(given) - set(probes)):
        raise InvalidInput(f"every names {unknown[0]!r}, but the probes are {', '.join(probes)}")
    if low := [name for name, interval in given.items() if not interval >= 1]:
        raise InvalidInput(f"every must be at least 1, not {given[low[0]]}")
    return given


def _built(probe: Any) -> Any:
    if isinstance(probe, str) or (callable(probe) and not hasattr(probe, "measure") and not isinstance(probe, Metric)):
        probe = resolve("probes", probe)()
    elif isinstance(probe, type):
        probe = probe()
    if not (isinstance(probe, Metric) and hasattr(probe, "consumes")) and not hasattr(probe, "measure"):
        raise InvalidInput(f"{probe!r} is no probe: expected a torchmetrics.Metric with `consumes`, or `measure`")
    return probe
