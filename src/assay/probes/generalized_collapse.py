"""Generalized neural collapse, GNC1 to GNC3: where features and class vectors end when classes outnumber dimensions.

Jiang, Zhou, Wang, Qu, Mixon, You, Zhu (2024, arXiv:2310.05351), on features and class vectors normalised to length 1:

    gnc1           tr(Sigma_W pinv(Sigma_B)) / K                      falls to 0: features become their class's mean
    rho_min, _mean smallest and mean one-vs-rest distance of the w_k  rise: class vectors become a softmax code
    rho_ratio      rho_min / rho*, rho* the largest known for (K, d)  rises to 1
    gnc3           mean_k of 1 - cos(mu_k, w_k)                       falls to 0: class vectors are the class means
    gnc3_centered  the same with mu_k - mu_G                          as the official code has it

Symbols: N samples, K classes, features h (N, d), class means mu_k, mu_G their average, Sigma_W = 1/N sum_i (h_i - mu_y)
(h_i - mu_y)^T, Sigma_B = 1/K sum_k (mu_k - mu_G)(mu_k - mu_G)^T, head w_k (K, d); a bias of the head is not looked at.

Departures: mu_G averages class means, not samples (the same if balanced). Centring in GNC3 is wrong unless mu_G is near
0, so both forms are given. rho* is known by formula for some (K, d) only: elsewhere by a search, on demand.

Cost: one pass, 2 N d^2 flops and 8 (d^2 + K d) bytes; then K small least-squares problems, 0.1 ms (K = 100,
d = 10) to 1 ms (1000, 64) each.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from assay.errors import InvalidInput
from assay.probes.class_statistics import check_labels, class_count, class_sums
from assay.probes.one_vs_rest import best_known_margin, one_vs_rest_margin
from assay.probes.softmax_codes import softmax_code

__all__ = ["GeneralizedCollapse"]

_KEYS = ("gnc1", "rho_min", "rho_mean", "rho_ratio", "gnc3", "gnc3_centered")
_RANK_TOLERANCE = 1e-10


class GeneralizedCollapse(Metric):
    """GNC1, GNC2 (one-vs-rest margin) and GNC3 in one pass over any number of samples.

    Args:
        num_classes: K; the width of the scores or of the head if not given.
        code_restarts: Starts of the search for a softmax code where no formula gives rho*; 0 leaves rho_ratio undefined
            there. The search runs once per process and (K, d): a fraction of a second for K = 10, seconds for K = 100.
        **metric_options: Passed to `torchmetrics.Metric`.

    Example:
        >>> head = nn.Linear(2, 3, bias=False)
        >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        >>> probe = GeneralizedCollapse()
        >>> probe.update(head.weight.data.repeat(2, 1), torch.arange(3).repeat(2), head=head)
        >>> values = probe.compute()
        >>> round(values["gnc1"], 12), round(values["gnc3"], 12), round(values["rho_min"], 12)
        (0.0, 0.0, 1.0)
    """

    consumes = ("features", "targets", "scores", "head")
    dear = True
    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    counts: Tensor
    sums: Tensor
    moment: Tensor
    undirected: Tensor

    def __init__(self, num_classes: int | None = None, *, code_restarts: int = 0, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        if (num_classes is not None and num_classes < 2) or code_restarts < 0:
            raise InvalidInput(
                f"expected num_classes >= 2 and code_restarts >= 0; got {num_classes} and {code_restarts}"
            )
        self.num_classes, self.code_restarts = num_classes, code_restarts
        self.skipped: dict[str, str] = {}
        self._head: list[nn.Linear] = []  # in a list, or nn.Module would make the user's layer a part of the probe
        # Numbers until the first batch tells their sizes: adding to 0 and merging need no special case.
        for name in ("counts", "sums", "moment", "undirected"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, features: Tensor, targets: Tensor, scores: Tensor | None = None, head: nn.Linear | None = None
    ) -> None:
        """Take in a batch.

        Args:
            features: Inputs of the classifier (B, d), of any length.
            targets: Classes (B,).
            scores: Class scores (B, K); only their width is used.
            head: The classifier, read when `compute` is called; without it GNC2 and GNC3 are NaN.

        Raises:
            InvalidInput: If the number of classes is unknown, or shapes, types or labels are wrong.
        """
        K = class_count(self.num_classes, scores, head)
        check_labels(features, targets, K)
        self._head = [] if head is None else [head]
        h = F.normalize(features.detach().double(), dim=1)
        sums, counts = class_sums(h, targets, K)
        self.counts = self.counts.to(h.device) + counts
        self.sums = self.sums.to(h.device) + sums
        self.moment = self.moment.to(h.device) + h.T @ h
        self.undirected = self.undirected.to(h.device) + (features == 0).all(dim=1).sum()

    def compute(self) -> dict[str, float]:
        """Return the measures by name; `skipped` then says for each NaN why.

        Raises:
            InvalidInput: If no batch was seen, or the head does not fit the features.
        """
        if self.counts.ndim != 1:
            raise InvalidInput("generalized collapse has seen no samples; call update before compute")
        self.skipped = {}
        values = dict.fromkeys(_KEYS, math.nan)
        if reason := self._no_means():
            self.skipped |= dict.fromkeys(("gnc1", "gnc3", "gnc3_centered"), reason)
        else:
            values["gnc1"] = self._variability()
        weight = self._directions()
        if weight is not None:
            values |= self._margins(weight)
            if "gnc3" not in self.skipped:
                values |= self._duality(weight)
        return values

    def _skip(self, reason: str, *keys: str) -> None:
        for key in keys:
            self.skipped.setdefault(key, reason)

    def _no_means(self) -> str:
        """Return why class means or their spread are undefined, empty if they are not."""
        if not self.sums.isfinite().all():
            return "the features contain NaN or infinity"
        if self.undirected > 0:
            return f"{int(self.undirected)} samples have features of length 0, which have no direction"
        if missing := (self.counts == 0).nonzero().flatten().tolist():
            return f"{len(missing)} of {len(self.counts)} classes have no samples, the first is {missing[0]}"
        return ""

    def _means(self) -> Tensor:
        return self.sums / self.counts[:, None]

    def _variability(self) -> float:
        """Return GNC1, in the basis of Sigma_B's eigenvectors of which it has min(K - 1, d)."""
        means, (K, d) = self._means(), self.sums.shape
        if self.counts.max() < 2:
            self._skip("no class has two samples, so features cannot vary within one", "gnc1")
            return math.nan
        M = means - means.mean(dim=0)
        values, vectors = torch.linalg.eigh(M.T @ M / K)
        values, vectors = values[-min(K - 1, d) :], vectors[:, -min(K - 1, d) :]
        if not values[0] > _RANK_TOLERANCE * values[-1]:
            self._skip("the class means span fewer directions than classes and features allow", "gnc1")
            return math.nan
        within = (self.moment - self.sums.T @ means) / self.counts.sum()
        # Rounding may leave a negative zero.
        return max(0.0, ((vectors.T @ within @ vectors).diagonal() / values).sum().item() / K)

    def _directions(self) -> Tensor | None:
        """Return the class vectors (K, d) of length 1, or None, saying why, if they have no direction."""
        keys = ("rho_min", "rho_mean", "rho_ratio", "gnc3", "gnc3_centered")
        if not self._head:
            self._skip("the network has no linear head on these features", *keys)
            return None
        weight = self._head[0].weight.detach().double()
        if weight.shape != self.sums.shape:
            raise InvalidInput(
                f"the head's weight {tuple(weight.shape)} does not fit {tuple(self.sums.shape)}, classes and features"
            )
        lengths = weight.norm(dim=1, keepdim=True)
        if not (lengths.isfinite().all() and (lengths > 0).all()):
            self._skip("a class vector of the head is 0, NaN or infinite", *keys)
            return None
        return weight / lengths

    def _margins(self, weight: Tensor) -> dict[str, float]:
        rho = one_vs_rest_margin(weight)
        K, d = weight.shape
        best = best_known_margin(K, d)
        if best is None and self.code_restarts:
            best = softmax_code(K, d, self.code_restarts).rho
        if not best:
            self._skip(
                f"no formula gives the best margin of {K} classes in {d} dimensions; set code_restarts", "rho_ratio"
            )
        ratio = rho.min().item() / best if best else math.nan
        return {"rho_min": rho.min().item(), "rho_mean": rho.mean().item(), "rho_ratio": ratio}

    def _duality(self, weight: Tensor) -> dict[str, float]:
        means = self._means().to(weight.device)
        centered = means - means.mean(dim=0)
        return {
            name: (1 - F.cosine_similarity(M, weight, dim=1)).mean().item()
            for name, M in (("gnc3", means), ("gnc3_centered", centered))
        }
