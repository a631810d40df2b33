"""Bias and variance of an ensemble's predicted probabilities per sample, and how closely the two are aligned.

Paper: "It's an Alignment, Not a Trade-off" / "On Bias-Variance Alignment in Deep Models" (Chen et al., ICLR 2024,
arXiv:2310.09250). With members h_1 ... h_M drawn from the law of training, hbar their mean and e_y the one-hot label:

    Bias^2 = |hbar - e_y|^2        Vari = E|h - hbar|^2        E|h - e_y|^2 = Bias^2 + Vari      for each sample (x, y)

    alignment (the claim): log Vari = slope * log Bias^2 + intercept on correctly classified samples, slope about 1
    identity:              E Bias^2 - E Vari = 1 - E|h|^2 - 2 E[hbar_y - |hbar|^2]
    the last term, `calibration_gap`, is 0 if the ensemble is calibrated; 1 - E|h|^2 is the members' `uncertainty`

Shapes: M members, B samples, K classes; probabilities (M, B, K). A sample is correct if argmax hbar = y.

Estimates: Vari is unbiased, with 1/(M-1). |hbar - e_y|^2 overestimates Bias^2 by Vari/M in expectation, which `debias`
takes off, and so does |hbar|^2 in the gap; the identity holds for the estimates either way. The expectation is over
what differs between the members, such as initial weights and order: data too only if they had different data.

Departures: samples with Bias^2 or Vari below 1e-12 (or not above 0 once debiased) have no logarithm; they are left out
of the line and counted in `dropped`. Calibration error is torchmetrics' definition, kept as sums per bin, since
torchmetrics keeps all samples. Cost: a few operations per probability; memory of two 50 x 50 histograms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from assay.errors import InvalidInput
from assay.probes.class_statistics import check_labels
from assay.probes.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BiasVariance", "BiasVarianceMetric", "SampleBiasVariance", "bias_variance"]

FLOOR = 1e-12
CONFIDENCE_BINS = 15
LOG_BINS, LOG_RANGE = 50, (-12.0, 0.5)  # of log10
_SLOPE = "bias_variance_slope"
_LINES = {"": "correctly classified", "_wrong": "wrongly classified"}


class SampleBiasVariance(NamedTuple):
    """Squared bias, variance and whether the mean prediction is correct, (B,) each."""

    bias2: Tensor
    variance: Tensor
    correct: Tensor


def bias_variance(probabilities: Tensor, targets: Tensor, *, debias: bool = True) -> SampleBiasVariance:
    """Return squared bias and variance of each sample, in float64.

    Args:
        probabilities: The members' predictions (M, B, K), M at least 2; rows sum to 1.
        targets: Classes (B,).
        debias: Whether Vari / M is taken off the squared bias, which may make it negative.

    Raises:
        InvalidInput: If the shapes do not fit, there is one member only, or rows are no probabilities.

    Example:
        >>> h = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]])
        >>> bias2, variance, correct = bias_variance(h, torch.tensor([0]), debias=False)
        >>> bias2.item(), variance.item(), correct.item()
        (0.125, 0.25, True)
    """
    h = _checked(probabilities, targets)
    mean = h.mean(0)
    variance = (h - mean).square().sum((0, 2)) / (len(h) - 1)
    bias2 = (mean - F.one_hot(targets, h.shape[2])).square().sum(1)
    if debias:
        bias2 = bias2 - variance / len(h)
    return SampleBiasVariance(bias2, variance, mean.argmax(1) == targets)


class BiasVarianceMetric(Metric):
    """Alignment of bias and variance over a stream of samples, with the ensemble's calibration beside it.

    `compute` returns, with "_wrong" for wrongly classified samples:

    - "bias_variance_slope", "bias_variance_intercept", "bias_variance_r2" (also "_wrong"): the least-squares line of
      log Vari on log Bias^2;
    - "variance_to_bias": mean Vari / mean Bias^2 on correctly classified samples;
    - "bias2", "variance", "uncertainty", "calibration_gap": means over all samples, tied by the identity;
    - "ensemble_accuracy", "ensemble_calibration_error" (15 bins) of the mean prediction;
    - "dropped": the share of samples that have no logarithm.

    Args:
        num_classes: K; known from the first batch if not given.
        debias: See `bias_variance`.
        **metric_options: Passed to `torchmetrics.Metric`.

    Attributes:
        histograms: Samples by log10 Bias^2 (rows) and log10 Vari (columns), 50 bins each from -12 to 0.5, outliers in
            the outermost: correctly classified samples first, then wrongly classified ones.

    Example:
        >>> metric = BiasVarianceMetric()
        >>> members = torch.tensor([[[0.9, 0.1], [0.6, 0.4]], [[0.8, 0.2], [0.9, 0.1]], [[0.7, 0.3], [0.6, 0.4]]])
        >>> metric.update(members, torch.tensor([0, 0]))
        >>> values = metric.compute()
        >>> round(values["bias2"], 4), round(values["variance"], 4), values["ensemble_accuracy"]
        (0.1167, 0.04, 1.0)
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    lines: Tensor
    sums: Tensor
    bins: Tensor
    histograms: Tensor

    def __init__(self, num_classes: int | None = None, *, debias: bool = True, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        self.num_classes, self.debias = num_classes, debias
        self.skipped: dict[str, str] = {}
        shapes = {  # by correctness: n, x, y, xx, xy, yy of the logarithms, Bias^2, Vari; over all: see `_totals`
            "lines": (2, 8),
            "sums": (7,),
            "bins": (CONFIDENCE_BINS + 1, 3),  # samples, confidence, correct; the last bin is confidence 1
            "histograms": (2, LOG_BINS, LOG_BINS),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Take in a batch.

        Args:
            probabilities: The members' predictions (M, B, K).
            targets: Classes (B,).

        Raises:
            InvalidInput: If shapes, types, labels or the number of classes are wrong, or rows are no probabilities.
        """
        h = _checked(probabilities, targets)
        if self.num_classes not in (None, h.shape[2]):
            raise InvalidInput(f"expected {self.num_classes} classes, got {h.shape[2]}")
        found = bias_variance(h, targets, debias=self.debias)
        self.sums = self.sums.to(h.device) + self._totals(h, targets, found)
        mean = h.mean(0)
        confidence, correct = mean.amax(1), found.correct.double()
        # As torchmetrics: edges in float32, a confidence on an edge belongs to the bin above it.
        edges = torch.linspace(0, 1, CONFIDENCE_BINS + 1, device=h.device).double()
        place = torch.bucketize(confidence, edges, right=True).sub(1).clamp(0, CONFIDENCE_BINS)
        rows = torch.stack([torch.ones_like(confidence), confidence, correct], 1)
        self.bins = self.bins.to(h.device).index_add(0, place, rows)
        self._add_logarithms(found)

    def _totals(self, h: Tensor, targets: Tensor, found: SampleBiasVariance) -> Tensor:
        """Sum over the batch: samples, Bias^2, Vari, uncertainty, calibration gap, correct, dropped."""
        mean = h.mean(0)
        gap = _of_label(mean, targets) - mean.square().sum(1)
        if self.debias:
            gap = gap + found.variance / len(h)
        uncertainty = 1 - h.square().sum(2).mean(0)
        ones = torch.ones_like(gap)
        each = (ones, found.bias2, found.variance, uncertainty, gap, found.correct.double(), (~_usable(found)).double())
        return torch.stack(each).sum(1)

    def _add_logarithms(self, found: SampleBiasVariance) -> None:
        lines, histograms = self.lines.to(found.bias2.device).clone(), self.histograms.to(found.bias2.device).clone()
        for row, of_line in enumerate((found.correct, ~found.correct)):
            chosen = of_line & _usable(found)
            x, y = found.bias2[chosen].log(), found.variance[chosen].log()
            moments = (torch.ones_like(x), x, y, x * x, x * y, y * y)
            lines[row, :6] += torch.stack(moments).sum(1)
            lines[row, 6:] += torch.stack([found.bias2[of_line].sum(), found.variance[of_line].sum()])
            low, high = LOG_RANGE
            a, b = (((z / math.log(10) - low) / (high - low) * LOG_BINS).long().clamp(0, LOG_BINS - 1) for z in (x, y))
            histograms[row] += torch.bincount(a * LOG_BINS + b, minlength=LOG_BINS**2).view(LOG_BINS, LOG_BINS)
        self.lines, self.histograms = lines, histograms

    def compute(self) -> dict[str, float]:
        """Return the quantities by name; `skipped` then says for each NaN why."""
        self.skipped = {}
        names = ("bias2", "variance", "uncertainty", "calibration_gap", "ensemble_accuracy", "dropped")
        samples, *totals = self.sums.tolist()
        values = {name: total / max(samples, 1) for name, total in zip(names, totals, strict=True)}
        error = (self.bins[:, 2] - self.bins[:, 1]).abs().sum().item()
        values["ensemble_calibration_error"] = error / max(samples, 1)
        for ending, line in zip(_LINES, self.lines.tolist(), strict=True):
            values |= self._line(ending, line)
        bias2, variance = self.lines[0, 6:].tolist()
        values["variance_to_bias"] = variance / bias2 if bias2 > 0 else math.nan
        if not bias2 > 0:
            self.skipped["variance_to_bias"] = "the correctly classified samples have no bias, or there are none"
        if samples and math.isfinite(sum(totals)):
            return values
        # One NaN must not shrink to one dropped sample.
        reason = "a probability is NaN or infinite" if samples else "no samples were seen"
        self.skipped = dict.fromkeys(values, reason)
        return dict.fromkeys(values, math.nan)

    def _line(self, ending: str, sums: list[float]) -> dict[str, float]:
        """Return slope, intercept and R^2 from the sums."""
        n, x, y, xx, xy, yy = sums[:6]
        keys = [f"bias_variance_{name}{ending}" for name in ("slope", "intercept", "r2")]
        spread_x, spread_y = (max(0.0, s - t * t / n) if n else 0.0 for s, t in ((xx, x), (yy, y)))
        # Below this the sums' own rounding decides.
        if n < 3 or not min(spread_x / max(xx, 1e-300), spread_y / max(yy, 1e-300)) > 1e-12:
            reason = f"fewer than 3 different {_LINES[ending]} samples have both a bias and a variance above {FLOOR:g}"
            self.skipped |= dict.fromkeys(keys, reason)
            return dict.fromkeys(keys, math.nan)
        common = xy - x * y / n
        slope = common / spread_x
        return dict(zip(keys, (slope, (y - slope * x) / n, common**2 / (spread_x * spread_y)), strict=True))


class BiasVariance:
    """Alignment of bias and variance of an ensemble as a model: the probe for `assay.Watch`.

    The model must have `member_scores(x)`, class scores before softmax (M, B, K), as `assay.models.Ensemble` has. For
    members of your own see `bias_variance`, and `BiasVarianceMetric` for what is returned.

    Args:
        debias: Whether the bias that few members cause is taken off; see `bias_variance`.

    Attributes:
        metric: The `BiasVarianceMetric` of the last measurement, with its histograms.
        skipped: Why a value is NaN.

    Example:
        >>> from assay.models.ensemble import Ensemble
        >>> from assay.models.mlp import MLP
        >>> ensemble = Ensemble(lambda generator: MLP((2,), 3, width=4, generator=generator), members=10)
        >>> batch = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
        >>> BiasVariance().measure(View(ensemble), [batch])["dropped"]
        0.0
    """

    def __init__(self, *, debias: bool = True) -> None:
        self.debias = debias
        self.skipped: dict[str, str] = {}
        self.metric = BiasVarianceMetric(debias=debias)

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return what `BiasVarianceMetric.compute` does; NaN, with the reason in `skipped`, if there are no members.

        Args:
            view: A network with `member_scores`.
            batches: Pairs of inputs and targets.
        """
        self.metric = BiasVarianceMetric(debias=self.debias)
        member_scores = getattr(view.model, "member_scores", None)
        if member_scores is None:
            self.skipped = {_SLOPE: f"{type(view.model).__name__} is no ensemble: it has no member_scores"}
            return {_SLOPE: math.nan}
        self.metric.to(view.device)
        with torch.no_grad():
            for x, y in batches:
                self.metric.update(member_scores(x).double().softmax(-1), y)
        values = self.metric.compute()
        self.skipped = self.metric.skipped
        return values

    def figure(self) -> Figure:
        """Return a figure of the last measurement: where samples lie, correct and wrong ones apart."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.4), layout="constrained")
        histograms = self.metric.histograms.cpu()
        for axes, counts, name in zip(figure.subplots(1, 2), histograms, _LINES.values(), strict=True):
            axes.imshow(counts.T.log1p().numpy(), origin="lower", extent=2 * LOG_RANGE, cmap="viridis")
            axes.plot(LOG_RANGE, LOG_RANGE, color="white", linewidth=0.8)  # Vari = Bias^2
            axes.set(title=f"{name} ({int(counts.sum())})", xlabel="log10 Bias$^2$", ylabel="log10 Vari")
        return figure


def _usable(found: SampleBiasVariance) -> Tensor:
    return (found.bias2 > FLOOR) & (found.variance > FLOOR)


def _of_label(mean: Tensor, targets: Tensor) -> Tensor:
    return mean.gather(1, targets[:, None])[:, 0]


def _checked(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return probabilities in float64 after checking them; NaN passes, and ends in a stated NaN."""
    if probabilities.ndim != 3 or len(probabilities) < 2:
        raise InvalidInput(
            f"expected the probabilities of at least 2 members (members, samples, classes), got "
            f"{tuple(probabilities.shape)}"
        )
    check_labels(probabilities[0], targets, probabilities.shape[2])
    h = probabilities.detach().double()
    rows = h[h.isfinite().all(2)]
    if len(rows) and (rows.min() < 0 or (rows.sum(1) - 1).abs().max() > 1e-3):
        raise InvalidInput("the members' rows are no probabilities (at least 0, sum 1); apply softmax to scores first")
    return h
