"""Neural collapse: how far the last features and the classifier are from one simplex, NC1 to NC4.

Papyan, Han, Donoho (2020), NC1-NC4; Zhou et al. (2022, arXiv:2210.02192 and 2203.01238) for NC1 by pseudo-inverse,
`nc2_etf_head`, `nc3` and `nc_bias` as in their evaluation code; names and variants as in Kothapalli's review
(2023, arXiv:2206.04041). All go to 0 as a network collapses.

    nc1                  tr(Sigma_W pinv(Sigma_B)) / K         nc1_trace  tr Sigma_W / tr Sigma_B
    nc2_equinorm         std_k |mu_k - mu_G| / mean_k          nc2_equiangular  std over k != l of cos(k, l)
    nc2_maxangle         mean over k != l of |cos(k, l) + 1/(K-1)|
    nc2_etf              | M M^T / |M M^T|_F - P |_F           P = (I - J/K) / sqrt(K-1)
    nc2_*_head           the same four of the classifier's rows, centred over classes
    nc3                  | W M^T / |W M^T|_F - P |_F           nc_bias  | W mu_G + b |
    nc4                  share of samples whose predicted class is not the nearest class mean's

Symbols: N samples, K classes, d features h (N, d), class means mu_k, their average mu_G, M = [mu_k - mu_G] (K, d),
Sigma_W = 1/N sum_i (h_i - mu_y)(h_i - mu_y)^T, Sigma_B = 1/K M^T M, head W (K, d), b (K,).

Departures: mu_G averages class means, not samples (the same when balanced; the rank of Sigma_B stays K-1 when not). The
pseudo-inverse keeps exactly K-1 directions rather than a tolerance's choice of them.

Cost: `NeuralCollapse` sees each sample once and keeps 8 (d^2 + 2 K d) bytes, 2 N d^2 flops. NC4 needs the final means,
so it is a second pass (`follow_up`). `neural_collapse` on arrays takes two passes of 2 N d K flops and keeps no d x d.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from assay.errors import InvalidInput
from assay.probes import _collapse
from assay.probes.class_means import check_labels, chunks, class_sums

__all__ = ["NearestCentreDisagreement", "NeuralCollapse", "neural_collapse"]


class NeuralCollapse(Metric):
    """NC1, NC2 and NC3 in one pass over any number of samples; NC4 in a second one.

    The scatter is accumulated about a first guess of each class mean (that of the first batch with the class) and
    corrected at the end, which keeps its digits however small the spread; states of two processes merge exactly.

    Args:
        num_classes: K; taken from the scores or the head if not given.
        nc4: False saves the second pass over the data.
        **metric_options: Passed to `torchmetrics.Metric`, for example `sync_on_compute=False`.

    Example:
        >>> probe = NeuralCollapse(num_classes=3)
        >>> probe.update(torch.eye(3), torch.tensor([0, 1, 2]))
        >>> values = probe.compute()
        >>> values["nc1"], round(values["nc2_etf"], 12)
        (0.0, 0.0)
    """

    consumes = ("features", "targets", "scores", "head")
    full_state_update = True
    higher_is_better = False
    is_differentiable = False
    counts: Tensor
    guess: Tensor
    offset: Tensor
    scatter: Tensor

    def __init__(self, num_classes: int | None = None, *, nc4: bool = True, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        if num_classes is not None and num_classes < 2:
            raise InvalidInput(f"num_classes must be at least 2, not {num_classes}")
        self.num_classes = num_classes
        self.nc4 = nc4
        self.skipped: dict[str, str] = {}
        self._head: nn.Linear | None = None
        # Sizes are known with the first batch; processes' states are stacked and merged in compute.
        for state in ("counts", "guess", "offset", "scatter"):
            self.add_state(state, torch.zeros(0, dtype=torch.float64), dist_reduce_fx=None)

    def update(
        self, features: Tensor, targets: Tensor, scores: Tensor | None = None, head: nn.Linear | None = None
    ) -> None:
        """Take in a batch.

        Args:
            features: Inputs of the last linear layer (B, d).
            targets: Classes (B,).
            scores: Class scores (B, C); only their width is used here.
            head: The classifier; read when `compute` is called. Without it NC2 of the head and NC3 are NaN.

        Raises:
            InvalidInput: If the number of classes is unknown, or shapes, types or labels are wrong.
        """
        K = self.num_classes or _width(scores, head)
        check_labels(features, targets, K)
        self.__dict__["_head"] = head  # past nn.Module, which would make the user's layer a submodule
        sums, counts = class_sums(features, targets, K)
        if self.counts.numel() == 0:
            d = features.shape[1]
            self.counts, self.guess, self.offset = counts.new_zeros(K), sums.new_zeros(K, d), sums.new_zeros(K, d)
            self.scatter = sums.new_zeros(d, d)
        new = (self.counts == 0) & (counts > 0)
        self.guess = torch.where(new[:, None], sums / counts.clamp(min=1)[:, None], self.guess)
        self.counts = self.counts + counts
        guess = self.guess.to(features.dtype if features.dtype == torch.float64 else torch.float32)
        self.guess = guess.double()  # exactly what is subtracted below
        for h, y in chunks(features, targets):
            residual = h - guess[y]
            self.scatter += residual.T @ residual
            self.offset.index_add_(0, y, residual.double())

    def compute(self) -> dict[str, float]:
        """Return the measures by name; `skipped` then says why any is NaN."""
        counts, guess, offset, scatter = self._merged()
        centres = guess + offset / counts[:, None]
        values, self.skipped = _measures(centres, counts, self._head, lambda M: _spread(M, counts, offset, scatter))
        if not self.nc4:
            values.pop("nc4")
            self.skipped.pop("nc4", None)
        return values

    def follow_up(self) -> NearestCentreDisagreement | None:
        """Return the metric of the second pass, which adds "nc4"; None if it is not wanted or not defined."""
        counts, guess, offset, _ = self._merged()
        if not self.nc4 or not (counts > 0).all():
            return None
        return NearestCentreDisagreement(guess + offset / counts[:, None])

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in what another instance has seen."""
        other = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        mine = (self.counts, self.guess, self.offset, self.scatter)
        theirs = (other["counts"], other["guess"], other["offset"], other["scatter"])
        self.counts, self.guess, self.offset, self.scatter = _merge(mine, theirs)
        self._computed = None
        self._update_count += 1

    def _merged(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.counts.numel() == 0:
            raise InvalidInput("neural collapse has seen no samples; call update before compute")
        if self.counts.ndim == 1:
            return self.counts, self.guess, self.offset, self.scatter
        states = list(zip(self.counts, self.guess, self.offset, self.scatter, strict=True))  # one per process
        total = states[0]
        for state in states[1:]:
            total = _merge(total, state)
        return total


class NearestCentreDisagreement(Metric):
    """NC4: share of samples whose predicted class is not that of the nearest class mean.

    Args:
        centres: Class means (K, d), as known after a first pass.
        **metric_options: Passed to `torchmetrics.Metric`.

    Example:
        >>> probe = NearestCentreDisagreement(torch.tensor([[0.0], [1.0]]))
        >>> probe.update(torch.tensor([[0.1], [0.9]]), torch.tensor([[2.0, 1.0], [2.0, 1.0]]))
        >>> probe.compute()
        {'nc4': 0.5}
    """

    consumes = ("features", "scores")
    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    different: Tensor
    total: Tensor

    def __init__(self, centres: Tensor, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        self.skipped: dict[str, str] = {}
        self.centres = centres.detach().double()
        self.add_state("different", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor, scores: Tensor) -> None:
        """Take in a batch of features (B, d) and class scores (B, C)."""
        mean = self.centres.mean(dim=0).to(features.device)
        nearest = _nearest(features.detach() - mean, self.centres.to(features.device) - mean)
        self.different = self.different.to(features.device) + (nearest != scores.argmax(dim=1)).sum()
        self.total = self.total.to(features.device) + len(features)

    def compute(self) -> dict[str, float]:
        """Return {"nc4": share of disagreement in [0, 1]}."""
        return {"nc4": (self.different / self.total).item()}


def neural_collapse(
    features: Tensor,
    targets: Tensor,
    *,
    head: nn.Linear | None = None,
    scores: Tensor | None = None,
    num_classes: int | None = None,
) -> dict[str, float]:
    """Measure neural collapse of features that are in memory, in two passes over them and little else.

    Args:
        features: Inputs of the last linear layer (N, d).
        targets: Classes (N,).
        head: The classifier; without it NC2 of the head and NC3 are NaN.
        scores: The network's class scores (N, C) for NC4; the head's if not given; NaN without either.
        num_classes: K; taken from the scores or the head if not given.

    Returns:
        The measures by name; NaN where undefined.

    Raises:
        InvalidInput: If the number of classes is unknown, or shapes, types or labels are wrong.

    Example:
        >>> values = neural_collapse(torch.eye(3), torch.tensor([0, 1, 2]), head=nn.Linear(3, 3), scores=torch.eye(3))
        >>> values["nc1"], values["nc4"]
        (0.0, 0.0)
    """
    K = num_classes or _width(scores, head)
    check_labels(features, targets, K)
    sums, counts = class_sums(features, targets, K)
    centres = sums.div_(counts[:, None])
    del sums
    second: dict[str, float] = {}

    def spread(M: Tensor) -> tuple[Tensor, float]:
        projected, trace, second["nc4"] = _second_pass(features, targets, scores, head, centres, M)
        return projected, trace

    return _measures(centres, counts, head, spread)[0] | second
