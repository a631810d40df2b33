"""Watch your own model learn: measure it in your own loop, with as many probes as you like and no trace left on it.

One forward pass per mini-batch serves every probe that reads features, scores or targets (`consumes`); a probe with a
`follow_up` gets a second pass over the data, and a probe with `measure(view, batches)` runs its own. All of it in eval
mode, inside `assay.probes._trace.untouched`.

Cost: one forward pass over `data` per measurement (two with NC4), plus what each probe says of itself. With a learning
rule the scores and the features are two calls to the rule.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from assay.errors import InvalidInput
from assay.history import History
from assay.names import resolve
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
        every: `measure(step)` measures only if the step is a multiple of this.
        batch_size: Samples per forward pass where `data` is not in batches already.

    Attributes:
        history: Everything measured so far.
        skipped: Why a quantity of the last measurement is NaN, by name.

    Raises:
        InvalidInput: If there is no data, or a probe is none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = (torch.eye(2).repeat(4, 1), torch.tensor([0, 1]).repeat(4))
        >>> watch = Watch(model, probes=["neural-collapse"], data=data)
        >>> sorted(watch.measure(step=0))[:2]
        ['nc1', 'nc1_trace']
    """

    def __init__(
        self,
        model: nn.Module,
        probes: Sequence[Any] = ("neural-collapse",),
        data: Any = None,
        *,
        rule: Any = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        every: int = 1,
        batch_size: int = 512,
    ) -> None:
        if every < 1 or batch_size < 1:
            raise InvalidInput(f"every and batch_size must be at least 1, not {every} and {batch_size}")
        self.view = View(model, rule=rule, loss=loss)
        self.probes = [_built(probe) for probe in ([probes] if isinstance(probes, str) else probes)]
        self.batches = Batches(data, batch_size, self.view)
        self.every = every
        self.history = History()
        self.skipped: dict[str, str] = {}

    def measure(self, step: float) -> dict[str, float]:
        """Measure now, and keep it in the history.

        Args:
            step: Where training is, in whatever unit the caller counts.

        Returns:
            Quantities by name, NaN where undefined (`skipped` says why); empty if the step is no multiple of `every`.

        Raises:
            InvalidInput: If the model, the data and the probes do not fit, or two probes measure the same quantity.
        """
        if self.every > 1 and step % self.every:
            return {}
        self.skipped = {}
        values: dict[str, float] = {}
        with untouched(*self.view.modules):
            for module in self.view.modules:
                module.eval()
            for found in (*self._stream([p for p in self.probes if isinstance(p, Metric)]), *self._run()):
                if repeated := sorted(set(values) & set(found)):
                    raise InvalidInput(f"two probes measure {', '.join(repeated)}; leave one of them out")
                values |= found
        self.skipped = {key: reason for key, reason in self.skipped.items() if math.isnan(values.get(key, 0.0))}
        self.history.record(step, values)
        return values

    def frame(self) -> list[dict[str, Any]]:
        """Return all measurements as rows with "step", "quantity" and "value", ready for `pandas.DataFrame`."""
        return self.history.frame()

    def plot(self) -> Figure:
        """Return a figure with one small plot per quantity over the steps."""
        return self.history.plot()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history as JSON; `load` or `assay.history.History.load` reads it."""
        self.history.save(path)

    def load(self, path: str | os.PathLike[str]) -> Self:
        """Take over a saved history, so that a restarted run goes on where it was; return the watch.

        Raises:
            InvalidInput: If the file is not such a history or is of a newer version.
            FileNotFoundError: If there is no such file.
        """
        self.history = History.load(path)
        return self

    def _stream(self, metrics: list[Any]) -> list[dict[str, float]]:
        """Feed all streaming probes from one pass, and those that ask for it from a second one."""
        if not metrics:
            return []
        results = self._pass(metrics)
        followers = {i: f for i, m in enumerate(metrics) if (f := getattr(m, "follow_up", lambda: None)()) is not None}
        if followers:
            for i, found in zip(followers, self._pass(list(followers.values())), strict=True):
                results[i] |= found
        return results

    @torch.no_grad()
    def _pass(self, metrics: list[Any]) -> list[dict[str, float]]:
        wanted = {name for metric in metrics for name in metric.consumes}
        for metric in metrics:
            metric.to(self.view.device).reset()
        for x, y in self.batches:
            scores, features, head = self.view.observe(x, features=bool(wanted & {"features", "head"}))
            seen = {"scores": scores, "features": features, "head": head, "targets": y}
            for metric in metrics:
                metric.update(**{name: seen[name] for name in metric.consumes})
        results = [metric.compute() for metric in metrics]
        for metric in metrics:
            self.skipped |= getattr(metric, "skipped", {})
            metric.reset()
        return results

    def _run(self) -> Iterator[dict[str, float]]:
        """Run the probes that take the network itself."""
        for probe in self.probes:
            if not isinstance(probe, Metric):
                yield probe.measure(self.view, self.batches)
                self.skipped |= getattr(probe, "skipped", {})


def _built(probe: Any) -> Any:
    if isinstance(probe, str) or (callable(probe) and not hasattr(probe, "measure") and not isinstance(probe, Metric)):
        probe = resolve("probes", probe)()
    elif isinstance(probe, type):
        probe = probe()
    if not (isinstance(probe, Metric) and hasattr(probe, "consumes")) and not hasattr(probe, "measure"):
        raise InvalidInput(f"{probe!r} is no probe: expected a torchmetrics.Metric with `consumes`, or `measure`")
    return probe
