"""What the curvature probes share: which parameters they look at, and when they have to pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.probes._same_scores import why_not_own_scores
from assay.probes.view import View

__all__ = ["groups_of", "layers_of", "why_not"]


def layers_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Return parameter names by the module that owns them, "model" for those of the root."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0] or "model", []).append(name)
    return layers


def groups_of(view: View, groups: str | Sequence[str]) -> dict[str, list[str] | None]:
    """Return what to measure by the suffix of its key: "" for all parameters, "/<group>" for a part of them.

    Args:
        view: The network.
        groups: Names of modules or parameters, or "layers" for every module with parameters of its own.
    """
    if groups == "layers":
        return {"": None} | {f"/{layer}": names for layer, names in layers_of(view.parameters()).items()}
    return {"": None} | {f"/{name}": [name] for name in ([groups] if isinstance(groups, str) else groups)}


def why_not(view: View, batches: Iterable[tuple[Any, Tensor]]) -> tuple[str | None, int]:
    """Return why the loss has no curvature in the model's parameters (None if it has), and the number of scores K."""
    x, _ = next(iter(batches))
    with torch.no_grad():
        scores = view.scores(x)
    if reason := why_not_own_scores(view, x):
        return reason, scores.shape[1]
    if not all(math.isfinite(p.detach().sum().item()) for p in view.model.parameters()):
        return "some parameters are not finite", scores.shape[1]
    return None, scores.shape[1]
