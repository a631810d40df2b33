"""The plain training loop around a learning rule, phase after phase, each with a fresh optimizer.

With `checkpoint=` it writes down after each epoch where it is, and starts from there when it is called again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.rules.rule import Rule

__all__ = ["fit"]

Batches = Iterable[tuple[Tensor, Tensor]]
History = list[dict[str, float | str]]
ADAM = partial(torch.optim.Adam, lr=1e-3)


def fit(
    rule: Rule,
    batches: Batches | Callable[[], Batches],
    epochs: int,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    clip: float | None = None,
    val: Batches | Callable[[], Batches] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> History:
    """Train a rule for a number of passes over the data.

    Args:
        rule: What to train; left in evaluation mode. One that does not learn from mini-batches (`streaming` is False)
            gets all of a pass at once.
        batches: (inputs, targets) mini-batches of one pass: a loader, a list, or a function that returns a fresh pass.
        epochs: Passes over the data in all, at least one per phase of the rule, shared equally among the phases.
        optimizer: Called with a phase's parameters at its start.
        clip: Largest gradient norm, of each local loss on its own.
        val: Mini-batches on which `rule.predict` is scored after each epoch, by accuracy; class labels (B,) only.
        checkpoint: File that is written after each epoch. If it is there already, training goes on after its last
            epoch, bit for bit: it holds the rule, the optimizer, the history, and the random states of torch's
            CPU generator and of the loader's `generator`, if it has one.

    Returns:
        One row per epoch: "phase", "epoch" (from 1), "loss" (mean over mini-batches), with `val` "accuracy" too.

    Raises:
        InvalidInput: If there are fewer epochs than phases, a pass over the data is empty, `val` has no class labels,
            or the checkpoint is of another run.

    Example:
        >>> from assay.rules.backprop import Backprop
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> [row["epoch"] for row in fit(Backprop(torch.nn.Linear(2, 2)), data, epochs=2)]
        [1, 2]
    """
    if epochs < len(rule.phase_names):
        phases = len(rule.phase_names)
        raise InvalidInput(f"{type(rule).__name__} trains in {phases} phase(s) and needs as many epochs, got {epochs}")
    saved = _Checkpoint(checkpoint, rule, epochs, getattr(batches, "generator", None))
    history, share = saved.history, 0.0
    for phase in rule.phases(epochs):
        share += phase.epochs
        if saved.is_after(phase.name):
            continue
        phase_optimizer = optimizer(phase.parameters)
        saved.restore(phase_optimizer)
        while len(history) < round(share):
            loss = _one_epoch(rule, _fresh(batches), phase_optimizer, clip)
            history.append({"phase": phase.name, "epoch": len(history) + 1, "loss": loss})
            if val is not None:
                history[-1]["accuracy"] = _accuracy(rule, _fresh(val))
            saved.write(phase_optimizer, history)
    rule.eval()
    return history


def _fresh(batches: Batches | Callable[[], Batches]) -> Batches:
    return batches() if callable(batches) else batches


def _one_epoch(rule: Rule, batches: Batches, optimizer: torch.optim.Optimizer, clip: float | None) -> float:
    rule.train()
    if not rule.streaming:
        batches = _whole(batches)
    losses = [rule.step(x, y, optimizer, clip)["loss"] for x, y in batches]
    if not losses:
        raise InvalidInput(
            "a pass over the data gave no mini-batches; an iterator is used up after one pass, so give a loader, a "
            "list or a function that returns a fresh iterator"
        )
    return float(torch.stack(losses).mean())


def _whole(batches: Batches) -> Batches:
    """Return all of a pass as one mini-batch, for rules that learn from nothing less."""
    pairs = list(batches)
    return [(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))] if pairs else []


def _accuracy(rule: Rule, batches: Batches) -> float:
    hits = []
    for x, y in batches:
        if y.ndim != 1 or y.is_floating_point():
            raise InvalidInput(
                f"val is scored by accuracy and needs class labels (samples,), but got {y.dtype} of shape "
                f"{tuple(y.shape)}; leave val out and score `rule.predict` yourself"
            )
        hits.append((rule.predict(x).argmax(-1) == y).float())
    return float(torch.cat(hits).mean())


class _Checkpoint:
    """Where a run is: read once at its start, written after each epoch."""

    def __init__(
        self, path: str | os.PathLike[str] | None, rule: Rule, epochs: int, order: torch.Generator | None
    ) -> None:
        self.path, self.rule, self.epochs, self.order = Path(path) if path else None, rule, epochs, order
        self._found = self._read()
        self.history: History = self._found["history"] if self._found else []

    def _read(self) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            found: dict[str, Any] = torch.load(self.path, weights_only=True)
            kind, phases, epochs = found["kind"], found["phases"], found["epochs"]
        except Exception as error:  # torch.load raises whatever the file makes it raise
            raise InvalidInput(f"{self.path} is no checkpoint of assay.rules.fit; remove it or name another") from error
        mine = type(self.rule).__name__, list(self.rule.phase_names)
        # With one phase the budget may grow; the shares of several would be others.
        if (kind, phases) != mine or (epochs != self.epochs and len(phases) > 1) or epochs > self.epochs:
            raise InvalidInput(
                f"{self.path} is of {kind} with phases {', '.join(phases)} and {epochs} epochs; this is {mine[0]} with "
                f"{', '.join(mine[1])} and {self.epochs}: remove it or name another"
            )
        return found

    def is_after(self, phase: str) -> bool:
        """Tell whether the run had left a phase when it was written down."""
        names = self.rule.phase_names
        return self._found is not None and names.index(phase) < names.index(self._found["phase"])

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Put everything back where it was, once."""
        if self._found is None:
            return
        found, self._found = self._found, None
        try:
            self.rule.load_state_dict(found["rule"])
            optimizer.load_state_dict(found["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InvalidInput(f"{self.path} does not fit this rule and optimizer: {reason}") from error
        torch.random.set_rng_state(found["random"])
        if self.order is not None and found["order"] is not None:
            self.order.set_state(found["order"])

    def write(self, optimizer: torch.optim.Optimizer, history: History) -> None:
        """Write the state of the run; a reader sees the old file or the new one, never half of it."""
        if self.path is None:
            return
        state = {
            "kind": type(self.rule).__name__,
            "phases": list(self.rule.phase_names),
            "epochs": self.epochs,
            "phase": self.rule.phase,
            "rule": self.rule.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": history,
            "random": torch.random.get_rng_state(),
            "order": self.order.get_state() if self.order is not None else None,
        }
        beside = self.path.with_name(self.path.name + ".part")
        torch.save(state, beside)
        beside.replace(self.path)
