"""Cases of the probes that label noise needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.probes.memorised_labels import LabelMemorisation
from assay.testing._shared import seeded

__all__ = ["CASES"]

CASES: dict[str, Callable[[], Any]] = {
    "label-memorisation": lambda: LabelMemorisation(
        torch.randn(20, 4, generator=seeded(4)), torch.arange(20) % 3, (torch.arange(20) // 2) % 3, batch_size=8
    ),
}
