"""What `assay.probes.feature_stages` keeps of a layer: sums over samples, from which all its quantities follow.

Per class: counts N_c, sums of features Y^T F and of signals Y^T G (C, K); over all: |g_j|^2 (K,) and F^T F (K, K).
Everything else is algebra: with s_j = Yc^T f_j, the inner product of g_j and Yc s_j is (Yc^T g_j) . s_j, and
|Yc s_j|^2 = s_j^T (diag N - N N^T / n) s_j. Features are taken relative to the first batch's mean, so that the centred
products keep their digits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["FeatureSums"]

_Found = tuple[dict[str, float], dict[str, Tensor], dict[str, str]]
_TINY = 1e-24  # of a squared norm: what rounding leaves of a constant node, and more


class FeatureSums:
    """Sums of one layer.

    Args:
        classes: C.
        features: The first batch's (B, K); their mean is the origin.
    """

    def __init__(self, classes: int, features: Tensor) -> None:
        self.origin = features.double().mean(dim=0)
        K = len(self.origin)
        self.counts = self.origin.new_zeros(classes)
        self.features, self.signals = (self.origin.new_zeros(classes, K) for _ in range(2))
        self.signal_squares, self.products = self.origin.new_zeros(K), self.origin.new_zeros(K, K)

    def add(self, features: Tensor, signal: Tensor, targets: Tensor) -> None:
        """Take in a batch of features and signals (B, K) and classes (B,)."""
        features, signal = features.double() - self.origin, signal.double()
        self.counts.index_add_(0, targets, torch.ones_like(features[:, 0]))
        self.features.index_add_(0, targets, features)
        self.signals.index_add_(0, targets, signal)
        self.signal_squares += signal.square().sum(dim=0)
        self.products.addmm_(features.T, features)

    def finish(self, eta: float) -> _Found:
        """Return the quantities by name, those of each node by name, and for what is NaN the reason."""
        n = self.counts.sum()
        mean = self.features.sum(dim=0) / n
        C = self.products - n * torch.outer(mean, mean)
        live = C.diagonal() > _TINY * n * (self.origin + mean).square().clamp_min(1e-300)
        values = {"signal_norm": (self.signal_squares.sum() / n).sqrt().item()}
        nodes, reasons = self._supervised(C, mean, live)
        values["feature_overlap"], nodes["redundancy"] = _pairs(C, live, eta)
        reasons |= {} if live.sum() > 1 else {"redundancy": "fewer than two nodes vary"}
        values |= {f"feature_{key}" if key != "alignment" else "signal_alignment": _mean(v) for key, v in nodes.items()}
        why = {_key(key): reason for key, reason in reasons.items()}
        for key, value in values.items():
            if math.isnan(value):
                why.setdefault(key, "fewer than two nodes vary" if key == "feature_overlap" else "no node varies")
        return values, nodes, {key: reason for key, reason in why.items() if math.isnan(values[key])}

    def _supervised(self, C: Tensor, mean: Tensor, live: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return alignment and energy share of each node."""
        n, missing = self.counts.sum(), torch.full_like(mean, math.nan)
        if reason := _uninformative(self.counts):
            return {"alignment": missing, "energy": missing}, {"alignment": reason, "energy": reason}
        centred = torch.diag(self.counts) - torch.outer(self.counts, self.counts) / n  # Yc^T Yc
        S = self.features - torch.outer(self.counts, mean)  # Yc^T F
        T = self.signals - torch.outer(self.counts / n, self.signals.sum(dim=0))  # Yc^T G
        squares = (S * (centred @ S)).sum(dim=0) * self.signal_squares
        cosines = (S * T).sum(dim=0) / squares.clamp_min(1e-300).sqrt()
        energy = S.square().sum(dim=0) / (torch.linalg.eigvalsh(centred)[-1] * C.diagonal())
        alignment = torch.where(live & (squares > 0), cosines, missing)
        reasons = {} if (live & (squares > 0)).any() else {"alignment": "the signal is 0"}
        return {"alignment": alignment, "energy": torch.where(live, energy, missing)}, reasons


def _pairs(C: Tensor, live: Tensor, eta: float) -> tuple[float, Tensor]:
    """Return the overlap of the varying nodes and the redundancy of each node."""
    redundancy, K = torch.full_like(C[0], math.nan), int(live.sum())
    if K < 2:
        return math.nan, redundancy
    C = C[live][:, live]
    diagonal = C.diagonal().clone()
    overlap = (C.abs().sum() - diagonal.sum()) / (K - 1) / diagonal.sum()
    ridge = eta * diagonal.mean()
    B = torch.cholesky_inverse(torch.linalg.cholesky(C + ridge * torch.eye(K, dtype=C.dtype, device=C.device)))
    redundancy[live] = 1 - 1 / (B.diagonal() * (diagonal + ridge))
    return overlap.item(), redundancy


def _uninformative(counts: Tensor) -> str:
    if (counts > 0).sum() < 2:
        return "the data are of a single class"
    if counts.max() < 2:
        return "no class has two samples, so that every feature is a function of the class"
    return ""


def _key(node_quantity: str) -> str:
    return "signal_alignment" if node_quantity == "alignment" else f"feature_{node_quantity}"


def _mean(values: Tensor) -> float:
    known = values[~values.isnan()]
    return known.mean().item() if len(known) else math.nan
