"""Neural collapse: how far the last features and the classifier are from one simplex, NC1 to NC4; all fall to 0.

Papyan, Han, Donoho (2020), NC1-NC4; Zhou et al. (2022, arXiv:2203.01238 and 2210.02192) for `nc1`, `nc2_etf_head`,
`nc3` and `nc_bias` as in their evaluation code; Galanti et al. (2022, arXiv:2112.15121) for `nc1_cdnv`; names and
variants from Kothapalli's review (2023, arXiv:2206.04041).

    nc1               tr(Sigma_W pinv(Sigma_B)) / K            nc1_trace        tr Sigma_W / tr Sigma_B
    nc1_cdnv          mean over k != l of (v_k + v_l) / (2 |mu_k - mu_l|^2)
    nc2_equinorm      std_k |mu_k - mu_G| / mean_k             nc2_equiangular  std over k != l of cos(k, l)
    nc2_maxangle      mean over k != l of |cos(k, l) + 1/(K-1)|
    nc2_etf           | M M^T / |M M^T|_F - P |_F              P = (I - J/K) / sqrt(K-1)
    nc2_of            | U U^T / |U U^T|_F - I / sqrt(K) |_F    0 for an orthogonal frame, where a head has no bias
    nc2_..._head      those of nc2_equinorm to nc2_etf, of the classifier's rows, centred over classes
    nc3               | W M^T / |W M^T|_F - P |_F, W centred   nc3_cos          1 - mean_k cos(w_k, mu_k - mu_G)
    nc3_frob          | W / |W|_F - M / |M|_F |_F
    nc_bias           | W mu_G + b |                           nc_bias_centred  the same without its mean over classes
    nc4               share of samples whose predicted class is not that of the nearest class mean
    ncc_accuracy      share of samples whose nearest class mean is that of their class; rises to 1

Symbols: N samples, K classes, features h (N, d), class means mu_k, their average mu_G, U = [mu_k] and M = [mu_k - mu_G]
(K, d), v_k = mean |h - mu_k|^2 in class k, Sigma_W = 1/N sum_i (h_i - mu_y)(h_i - mu_y)^T, Sigma_B = 1/K M^T M, head
W (K, d), b (K,). At an orthogonal frame `nc2_etf` is 0 too, since it centres; at a simplex `nc2_of` is not.

Departures: mu_G averages class means unless `centre="sample"` (the same if classes are balanced). The pseudo-inverse
keeps exactly K-1 directions where a default tolerance may let a noise direction in. `nc1` and `nc1_trace` can move in
opposite directions: name the variant.

Cost: `NeuralCollapse` sees each sample once, keeps 8 (d^2 + 2 K d) bytes, 2 N d^2 flops. NC4 needs the final means: a
second pass. `assay.probes.measure_collapse`, for features in memory, makes two passes and nothing d x d, as does
`assay.probes.LayerwiseCollapse` for every layer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from assay.errors import InvalidInput
from assay.probes._simplex import NEAREST_KEYS, CollapseGeometry, check_centre
from assay.probes.class_statistics import check_labels, chunks, class_count, class_sums
from assay.probes.nearest_centre import NearestCentreDisagreement

__all__ = ["NeuralCollapse"]

_STATE = ("counts", "guess", "offset", "squares", "scatter")
_State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # (K,), (K, d), (K, d), (K,), (d, d)
_SCATTER_CHUNK = 2**19  # elements: enough rows that the product, not its accumulation in float64, takes the time


class NeuralCollapse(Metric):
    """NC1, NC2 and NC3 in one pass over any number of samples; NC4 in a second one, by `follow_up`.

    The scatter is taken about a first guess of each class mean (that of the first batch with the class) and corrected
    at the end, so that a small spread keeps its digits; processes gather their states, which merge exactly.

    Args:
        num_classes: K; the width of the scores or of the head if not given.
        nc4: False saves the second pass, which gives "nc4" and "ncc_accuracy".
        centre: What mu_G averages: "class" means or "sample"s.
        **metric_options: Passed to `torchmetrics.Metric`, for example `sync_on_compute=False`.

    Example:
        >>> probe = NeuralCollapse(num_classes=3)
        >>> probe.update(torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2]).repeat(2))
        >>> values = probe.compute()
        >>> round(values["nc1"], 12), round(values["nc2_etf"], 12), probe.skipped["nc3"]
        (0.0, 0.0, 'the network has no linear head on these features')
    """

    consumes = ("features", "targets", "scores", "head")
    full_state_update = True
    higher_is_better = False
    is_differentiable = False
    counts: Tensor
    guess: Tensor
    offset: Tensor
    squares: Tensor
    scatter: Tensor

    def __init__(
        self, num_classes: int | None = None, *, nc4: bool = True, centre: str = "class", **metric_options: Any
    ) -> None:
        super().__init__(**metric_options)
        check_centre(centre)
        if num_classes is not None and num_classes < 2:
            raise InvalidInput(f"num_classes must be at least 2, not {num_classes}")
        self.num_classes, self.nc4, self.centre, self._metric_options = num_classes, nc4, centre, metric_options
        self.skipped: dict[str, str] = {}
        self._centres: Tensor | None = None
        self._head: list[nn.Linear] = []  # in a list, or nn.Module would make the user's layer a part of the probe
        for name in _STATE:  # the first batch gives them their sizes
            self.add_state(name, torch.zeros(0, dtype=torch.float64), dist_reduce_fx=None)

    def update(
        self, features: Tensor, targets: Tensor, scores: Tensor | None = None, head: nn.Linear | None = None
    ) -> None:
        """Take in a batch.

        Args:
            features: Inputs of the classifier (B, d).
            targets: Classes (B,).
            scores: Class scores (B, K); only their width is used.
            head: The classifier, read when `compute` is called; without it NC2 of the head and NC3 are NaN.

        Raises:
            InvalidInput: If the number of classes is unknown, or shapes, types or labels are wrong.
        """
        K = class_count(self.num_classes, scores, head)
        check_labels(features, targets, K)
        self._head = [] if head is None else [head]
        sums, counts = class_sums(features, targets, K)
        if self.counts.numel() == 0:
            d = features.shape[1]
            self.counts, self.squares, self.scatter = (
                torch.zeros_like(counts),
                torch.zeros_like(counts),
                sums.new_zeros(d, d),
            )
            self.guess, self.offset = torch.zeros_like(sums), torch.zeros_like(sums)
        if (new := (self.counts == 0) & (counts > 0)).any():
            # Rounded to float32: what is kept is exactly what is subtracted.
            self.guess[new] = (sums[new] / counts[new, None]).float().double()
        self.counts += counts
        with torch.autocast(features.device.type, enabled=False):
            self._accumulate(features, targets)

    def _accumulate(self, features: Tensor, targets: Tensor) -> None:
        guess = self.guess.to(torch.promote_types(features.dtype, torch.float32))
        for h, y in chunks(features, targets, _SCATTER_CHUNK):
            residual = h - guess[y]
            self.scatter += residual.T @ residual
            self.offset.index_add_(0, y, residual.double())
            self.squares.index_add_(0, y, torch.linalg.vector_norm(residual, dim=1).double().square())

    def compute(self) -> dict[str, float]:
        """Return the measures by name; `skipped` then says for each NaN why."""
        counts, guess, offset, squares, scatter = self._merged()
        self._centres = guess + offset / counts[:, None]
        head = self._head[0] if self._head else None
        geometry = CollapseGeometry(self._centres.clone(), counts, head, self.centre)
        if geometry.defined:
            M, O = geometry.M, offset @ geometry.M.T  # noqa: E741 - the offsets, projected
            projected = M @ scatter @ M.T - (O / counts[:, None]).T @ O
            squares = (squares - offset.square().sum(dim=1) / counts).clamp(min=0)
            geometry.add_spread(geometry.whitened(projected), squares, counts)
        values, self.skipped = geometry.values, geometry.skipped
        for key in NEAREST_KEYS:
            if self.nc4:
                self.skipped.setdefault(key, "it takes a second pass, see follow_up")
                values[key] = math.nan
            else:
                self.skipped.pop(key, None)
        return values

    def follow_up(self) -> NearestCentreDisagreement | None:
        """Return the metric of the second pass: "nc4" and "ncc_accuracy", with the class means that `compute` found.

        Returns:
            None if NC4 is not wanted, or not defined because a class is missing.

        Raises:
            InvalidInput: If `compute` was not called.
        """
        if self._centres is None:
            raise InvalidInput("NC4 needs the class means; call compute before follow_up")
        if not self.nc4 or len(self._centres) < 2 or not self._centres.isfinite().all():
            return None
        return NearestCentreDisagreement(self._centres, **self._metric_options)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in what another instance has seen."""
        other: dict[str, Any] = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        theirs = tuple(other[name] for name in _STATE)
        for name, value in zip(_STATE, _merge(self._merged(), theirs), strict=True):
            setattr(self, name, value)
        self._computed = None

    def _merged(self) -> _State:
        state = (self.counts, self.guess, self.offset, self.squares, self.scatter)
        if self.counts.numel() == 0:
            raise InvalidInput("neural collapse has seen no samples; call update before compute")
        if self.counts.ndim == 1:
            return state
        total, *others = zip(*state, strict=True)  # gathered from several processes
        for other in others:
            total = _merge(total, other)
        return total


def _merge(first: _State, second: _State) -> _State:
    """Add two states: move the second to the first's guesses, then sum."""
    n1, guess1, offset1, squares1, scatter1 = first
    n2, guess2, offset2, squares2, scatter2 = second
    guess = torch.where((n1 > 0)[:, None], guess1, guess2)
    shift = (guess2 - guess) * (n2 > 0)[:, None]
    cross = shift.T @ offset2
    moved = scatter2 + cross + cross.T + shift.T @ (n2[:, None] * shift)
    farther = squares2 + 2 * (shift * offset2).sum(dim=1) + n2 * shift.square().sum(dim=1)
    return n1 + n2, guess, offset1 + offset2 + n2[:, None] * shift, squares1 + farther, scatter1 + moved
