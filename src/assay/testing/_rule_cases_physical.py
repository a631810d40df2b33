"""Cases of rules that train digital layers between physical systems."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.models.physical_network import PhysicalNetwork
from assay.rules.backprop import Backprop
from assay.rules.physical_forward import PhysicalForward
from assay.rules.rule import Rule

__all__ = ["PHYSICAL_CASES"]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _two_patterns(*shape: int) -> tuple[Tensor, Tensor]:
    """Return inputs (128, *shape) of two classes, bright in one half of the entries or in the other, and labels.

    A source of fixed power loses the size of its inputs, in which two blobs of opposite means differ.
    """
    targets = torch.arange(128) % 2
    inputs = torch.randn(128, math.prod(shape), generator=_generator(1)) / 2
    for label, half in enumerate(inputs.chunk(2, dim=1)):
        half += 2.0 * (targets == label)[:, None]
    return inputs.view(128, *shape), targets


def _case(make: Callable[[], Rule], *shape: int, epochs: int = 20) -> Callable[[], object]:
    def factory() -> object:
        from assay.testing.rules import RuleCase

        return RuleCase(make(), *_two_patterns(*shape), epochs=epochs)

    return factory


def _physical(**options: Any) -> PhysicalNetwork:
    return PhysicalNetwork((16,), 2, width=24, generator=_generator(0), **options)


def _forward(model: nn.Module, **options: Any) -> PhysicalForward:
    return PhysicalForward(model, 2, theta=10.0, generator=_generator(2), **options)


def _mlp() -> PhysicalForward:
    return _forward(MLP((16,), 2, width=24, activation="gelu", generator=_generator(0)), inner=1, magnitude=False)


PHYSICAL_CASES: dict[str, Callable[[], object]] = {
    "physical-forward": _case(lambda: _forward(_physical(), inner=3), 16),
    "physical-forward-noisy": _case(
        lambda: _forward(_physical(noise=0.05, skip=True, label_slots=True), inner=1, embed="prepend"), 16
    ),
    "physical-forward-mlp": _case(_mlp, 16),
    "physical-forward-cnn": _case(
        lambda: _forward(CNN((1, 8, 8), 2, channels=(4, 6), generator=_generator(0)), inner=2), 1, 8, 8
    ),
    "backprop-in-silico": _case(lambda: Backprop(_physical(mode="model", mismatch=0.1)), 16),
    "backprop-physics-aware": _case(lambda: Backprop(_physical(mode="straight-through", mismatch=0.3)), 16),
}
