"""Counter-current learning in tiny settings: its three matches, frozen feedback, one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.rules.counter_current import CounterCurrent

__all__ = ["COUNTER_CURRENT_CASES"]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _mlp() -> nn.Module:
    return MLP((16,), 2, width=12, depth=2, activation="elu", generator=_generator(0))


def _cnn() -> nn.Module:
    return CNN((1, 8, 8), 2, channels=(4, 6), generator=_generator(0))


def _case(model: Callable[[], nn.Module], epochs: int, **options: Any) -> Callable[[], object]:
    def factory() -> object:
        from assay.testing.rules import RuleCase, two_blobs

        rule = CounterCurrent(model(), 2, generator=_generator(2), **options)
        return RuleCase(rule, *two_blobs(*((16,) if model is _mlp else (1, 8, 8))), epochs=epochs)

    return factory


def _one_layer() -> object:
    from assay.testing.rules import RuleCase, two_blobs

    model = MLP((16,), 2, depth=0, generator=_generator(0))
    rule = CounterCurrent(model, 2, blocks=["head"], train_feedback=False, generator=_generator(2))
    return RuleCase(rule, *two_blobs(16), epochs=10, limit=model)


COUNTER_CURRENT_CASES: dict[str, Callable[[], object]] = {
    "counter-current": _case(_mlp, 10),
    "counter-current-frozen": _case(_mlp, 10, train_feedback=False),
    "counter-current-mse": _case(_mlp, 10, match="mse"),
    "counter-current-cnn": _case(_cnn, 12, match="normalized", skip_above=0.9),
    "counter-current-one-layer": _one_layer,
}
