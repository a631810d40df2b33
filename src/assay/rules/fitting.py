"""The plain training loop around a learning rule, phase after phase, each with a fresh optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.rules.rule import Rule

__all__ = ["fit"]

Batches = Iterable[tuple[Tensor, Tensor]]
ADAM = partial(torch.optim.Adam, lr=1e-3)


def fit(
    rule: Rule,
    batches: Batches | Callable[[], Batches],
    epochs: int,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    clip: float | None = None,
    val: Batches | Callable[[], Batches] | None = None,
) -> list[dict[str, float | str]]:
    """Train a rule for a number of passes over the data.

    Args:
        rule: What to train; left in evaluation mode.
        batches: (inputs, targets) mini-batches of one pass: a loader, a list, or a function that returns a fresh pass.
        epochs: Passes over the data in all, at least one per phase of the rule, shared equally among the phases.
        optimizer: Called with a phase's parameters at its start.
        clip: Largest gradient norm, of each local loss on its own.
        val: Mini-batches on which `rule.predict` is scored after each epoch.

    Returns:
        One row per epoch: "phase", "epoch" (from 1), "loss" (mean over mini-batches), with `val` "accuracy" too.

    Raises:
        InvalidInput: If there are fewer epochs than phases, or a pass over the data is empty.

    Example:
        >>> from assay.rules.backprop import Backprop
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> [row["epoch"] for row in fit(Backprop(torch.nn.Linear(2, 2)), data, epochs=2)]
        [1, 2]
    """
    if epochs < len(rule.phase_names):
        phases = len(rule.phase_names)
        raise InvalidInput(f"{type(rule).__name__} trains in {phases} phase(s) and needs as many epochs, got {epochs}")
    history: list[dict[str, float | str]] = []
    share = 0.0
    for phase in rule.phases(epochs):
        share += phase.epochs
        phase_optimizer = optimizer(phase.parameters)
        while len(history) < round(share):
            loss = _one_epoch(rule, _fresh(batches), phase_optimizer, clip)
            history.append({"phase": phase.name, "epoch": len(history) + 1, "loss": loss})
            if val is not None:
                history[-1]["accuracy"] = _accuracy(rule, _fresh(val))
    rule.eval()
    return history


def _fresh(batches: Batches | Callable[[], Batches]) -> Batches:
    return batches() if callable(batches) else batches


def _one_epoch(rule: Rule, batches: Batches, optimizer: torch.optim.Optimizer, clip: float | None) -> float:
    rule.train()
    losses = [rule.step(x, y, optimizer, clip)["loss"] for x, y in batches]
    if not losses:
        raise InvalidInput(
            "a pass over the data gave no mini-batches; an iterator is used up after one pass, so give a loader, a "
            "list or a function that returns a fresh iterator"
        )
    return float(torch.stack(losses).mean())


def _accuracy(rule: Rule, batches: Batches) -> float:
    hits = [(rule.predict(x).argmax(-1) == y).float() for x, y in batches]
    return float(torch.cat(hits).mean())
