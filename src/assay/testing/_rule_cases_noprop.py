"""NoProp in tiny settings: all kinds, and discrete time in several orders, networks and embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.models.noprop_net import NoPropNet
from assay.rules.noprop import NoProp

__all__ = ["NOPROP_CASES"]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _case(
    shape: tuple[int, ...], blocks: int | None, epochs: int, net: dict[str, Any], **options: Any
) -> Callable[[], object]:
    def factory() -> object:
        from assay.testing.rules import RuleCase, two_blobs

        model = NoPropNet(shape, 2, blocks=blocks, width=12, time_dim=8, generator=_generator(0), **net)
        return RuleCase(NoProp(model, 2, generator=_generator(2), **options), *two_blobs(*shape), epochs=epochs)

    return factory


# Embeddings that learned ones start from.
START = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
STEPS = {"inference_steps": 10}

NOPROP_CASES: dict[str, Callable[[], object]] = {
    "no-prop": _case((16,), 3, 15, {}),
    "no-prop-all-blocks": _case((16,), 3, 8, {}, per_batch=3, samples=2),
    "no-prop-epoch": _case((1, 8, 8), 2, 12, {"encoder": "conv", "channels": (3, 4)}, order="epoch"),
    "no-prop-learned": _case((16,), 2, 12, {"embed_dim": 3}, embed=START, per_batch=2, schedule="learned"),
    "no-prop-ct": _case((16,), None, 15, {}, kind="ct", **STEPS),
    "no-prop-fm": _case((16,), None, 80, {}, kind="fm", **STEPS),
}
