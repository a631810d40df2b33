"""Tiny settings of DiffGrad, LAMB and LARS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.optim.diffgrad import DiffGrad
from assay.optim.lamb import LAMB
from assay.optim.lars import LARS

__all__ = ["CASES"]


def _made(kind: type[torch.optim.Optimizer], **options: Any) -> Callable[[], Any]:
    return lambda: lambda parameters: kind(parameters, **{"lr": 0.01, **options})


CASES: dict[str, Callable[[], Any]] = {
    "diffgrad": _made(DiffGrad),
    "diffgrad-decay": _made(DiffGrad, weight_decay=0.1),
    "diffgrad-decoupled-normalized": _made(DiffGrad, weight_decay=0.1, decoupled=True, friction="normalized"),
    "diffgrad-own-friction": _made(DiffGrad, friction=torch.ones_like),
    "lamb": _made(LAMB),
    "lamb-clipped": _made(LAMB, trust_clip=(0.1, 2.0), weight_decay=0.1, bias_correction=False, min_ndim=0),
    "lamb-unadapted": _made(LAMB, layer_adaptation=False),
    "lars": _made(LARS),
    "lars-without-momentum": _made(LARS, momentum=0.0, weight_decay=0.0, min_ndim=0),
}
