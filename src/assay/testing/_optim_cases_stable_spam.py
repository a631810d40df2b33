"""Tiny settings of `assay.optim.StableSPAM` and `assay.optim.SPAM`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from assay.optim.spam import SPAM
from assay.optim.stable_spam import StableSPAM

__all__ = ["CASES"]


def _case(kind: Any, **options: Any) -> Callable[[], Any]:
    return lambda: partial(kind, lr=0.01, **options)


CASES: dict[str, Callable[[], Any]] = {
    "spam": _case(SPAM, clip_after=1, threshold=2.0, reset_every=4, warmup=2, weight_decay=0.1),
    "spam-plain": _case(SPAM, threshold=None, reset_every=0),
    "stable-spam": _case(StableSPAM, reset_every=4, total_steps=10, weight_decay=0.1),
    "stable-spam-official": _case(StableSPAM, reset_every=2, reset="official"),
    "stable-spam-clip-only": _case(StableSPAM, norm=False, gammas=(0.7, 0.9, 0.5)),
    "stable-spam-norm-only": _case(StableSPAM, clip=False, reset_every=0),
}
