"""Which learning rule trains which network, found out by letting each take a step on each; a guide shows the table."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from assay.errors import InvalidInput
from assay.names import resolve
from assay.rules.rule import Rule

__all__ = ["ARCHITECTURES", "public_rules", "table", "trained_by"]

# Heading -> model of 8 x 8 digits, as `assay train` takes it.
ARCHITECTURES: dict[str, str] = {
    "MLP": "mlp(width=12, depth=2)",
    "with batch norm": "mlp(width=12, depth=2, batch_norm=True)",
    "CNN": "cnn(channels=(4, 6))",
    "RowRNN": "row-rnn(width=12)",
    "ViT": "vision-transformer(width=8, depth=1, heads=2, patch=4)",
    "NoPropNet": "no-prop-net(blocks=2, width=12)",
    "RelaxationNet": "relaxation-net(width=12)",
    "PhysicalNetwork": "physical-network(width=12, depth=2)",
}
SHAPE, CLASSES, BATCH = (1, 8, 8), 10, 20


def public_rules() -> dict[str, type[Rule]]:
    """Return the rules of the seam by name."""
    seam = importlib.import_module("assay.rules")
    found = {name: getattr(seam, name) for name in seam.__all__}
    return {n: c for n, c in found.items() if inspect.isclass(c) and issubclass(c, Rule) and c is not Rule}


@cache
def trained_by(name: str, model: str) -> Rule | None:
    """Return a rule that took a step on a model in each of its phases, or None if it refuses the model."""
    kind: Callable[..., Rule] = public_rules()[name]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network: nn.Module = resolve("models", model)(SHAPE, CLASSES)
        wanted = {"num_classes": CLASSES} if "num_classes" in inspect.signature(kind).parameters else {}
        x, y = torch.rand(BATCH, *SHAPE), torch.arange(BATCH) % CLASSES
        try:
            rule = kind(network, **wanted)
            for phase in rule.phases(len(rule.phase_names)):
                rule.step(x, y, torch.optim.SGD(phase.parameters, lr=1e-3))
        except InvalidInput:
            return None
        assert rule.predict(x).shape == (BATCH, CLASSES)
    return rule


def table() -> str:
    """Return the Markdown table of rules and networks, with what is special about each rule."""
    header = ["rule", *ARCHITECTURES, "local", "prediction"]
    lines = [header, ["---"] * len(header)]
    for name in sorted(public_rules()):
        tried = [trained_by(name, model) for model in ARCHITECTURES.values()]
        known = next((rule for rule in tried if rule is not None), None)
        local, prediction = ("", "") if known is None else ("yes" if known.local else "no", _prediction(known))
        lines.append([f"`{name}`", *("yes" if rule is not None else "" for rule in tried), local, prediction])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _prediction(rule: Rule) -> str:
    parts = ["tries every class"] if rule.label_sweep else []
    parts += ["draws noise"] if rule.stochastic_predict else []
    return ", ".join(parts) or "one pass"
