"""Spectra of weight matrices: heavy tail, bulk and spikes, ranks; per layer, without any data.

Kothapalli et al. (2025, arXiv:2406.04657); Martin and Mahoney (2021, arXiv:1810.01075) for reading layers by their
power-law exponent, as WeightWatcher does.

With s_1 >= s_2 >= ... the m singular values of a layer's h x d matrix and l = s^2:

    weight_alpha_hill       exponent of the upper half of l         weight_alpha_ks      of the best-fitting tail
    weight_ks_distance      of that tail from its fit               weight_tail_size     eigenvalues in it
    weight_spectral_norm    s_1                                     weight_spectral_gap  s_1 / s_2
    weight_stable_rank      sum l / l_1                             weight_spikes        l above the bulk's edge
    weight_effective_rank   exp(entropy of s / sum s)               weight_mp_distance   of all l from Marchenko-Pastur

each with "/<layer>" behind. Heavy tails: an exponent of 2 to 4, a small distance, and a tail of many members. Pure
noise: no spikes, a distance from Marchenko-Pastur near 0, alpha_hill near 2.5 (for h = 1.5 d).

Departures: eigenvalues up to `floor` times the largest count as 0 (WeightWatcher: up to 1e-5, whatever the scale). A
convolution is one matrix, out x (in k k), as in the paper; `conv="slices"` pools k k matrices, as WeightWatcher does.

Cost: see `assay.probes.singular_values`: 0.1 s for a 1024 x 1024 layer on one core; memory of one Gram matrix, not of
the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._weights import weight_matrices
from assay.probes.marchenko_pastur import MarchenkoPastur, spike_threshold
from assay.probes.power_law_tail import PowerLawTail, hill_alpha, mle_ks_alpha
from assay.probes.singular_values import as_matrix, squared_singular_values
from assay.probes.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LayerSpectrum", "WeightSpectrum", "layer_spectrum"]

_LEAST = 8  # eigenvalues below which no law is fitted, as in WeightWatcher
_RESOLVED = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest eigenvalue: the Gram matrix's digits end here
_TAIL, _BULK = ("alpha_hill", "alpha_ks", "ks_distance", "tail_size"), ("spikes", "mp_distance")
_NAMES = (*_TAIL, "spectral_norm", "spectral_gap", "stable_rank", "effective_rank", *_BULK)


@dataclass(frozen=True)
class LayerSpectrum:
    """What one weight matrix's spectrum shows.

    Args:
        shape: (h, d) of the matrix; of one slice where a convolution was cut into slices.
        eigenvalues: All m squared singular values, ascending, in float64 on the CPU.
        method: How they were found: "gram-float64", "gram-float32" or "svd".
        values: The quantities by name, without the prefix "weight_"; NaN where undefined.
        skipped: Why a value is NaN.
        tail: The best-fitting tail, if there is one.
        bulk: The Marchenko-Pastur law of the same median, if there is one.
    """

    shape: tuple[int, int]
    eigenvalues: Tensor
    method: str
    values: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    tail: PowerLawTail | None = None
    bulk: MarchenkoPastur | None = None


def layer_spectrum(
    weight: Tensor,
    *,
    dtype: torch.dtype = torch.float64,
    conv: Literal["flatten", "slices"] = "flatten",
    floor: float = 1e-9,
) -> LayerSpectrum:
    """Measure one weight.

    Args:
        weight: A linear layer's (h, d) or a convolution's (out, in, ...).
        dtype: float32 halves the time; where an estimate rests on an eigenvalue below 1e-4 of the largest, which would
            cost its third digit, float64 is used all the same.
        conv: "flatten" or "slices".
        floor: Eigenvalues up to this share of the largest count as 0. Below 1e-9 an SVD in float64 takes the Gram
            matrix's place, whose digits end there.

    Raises:
        InvalidInput: If the weight is no matrix or not finite, or an option is unknown.

    Example:
        >>> spectrum = layer_spectrum(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
        >>> spectrum.values["spectral_gap"], round(spectrum.values["stable_rank"], 4), spectrum.skipped["alpha_ks"]
        (1.5, 1.5556, 'only 3 singular values above 0, a law is fitted to 8 or more')
    """
    if dtype not in _RESOLVED or conv not in ("flatten", "slices") or not 0 <= floor < 1:
        raise InvalidInput(f"expected float32 or float64, flatten or slices, 0 <= floor < 1; got {dtype, conv, floor}")
    matrices = _matrices(weight, conv)
    if floor < _RESOLVED[torch.float64]:
        return _described(matrices, torch.float64, "svd", floor)
    if dtype == torch.float32:
        quick = _described(matrices, dtype, "gram", max(floor, 1e-6))
        if _lowest_used(quick) >= _RESOLVED[dtype]:
            return quick
    return _described(matrices, torch.float64, "gram", floor)


def _matrices(weight: Tensor, conv: str) -> list[Tensor]:
    if conv == "flatten" or weight.ndim < 3:
        return [as_matrix(weight)]
    return [as_matrix(matrix) for matrix in weight.detach().flatten(2).unbind(2)]


def _lowest_used(spectrum: LayerSpectrum) -> float:
    """Return the smallest eigenvalue that an estimate starts at, as a share of the largest."""
    eigenvalues = spectrum.eigenvalues
    start = eigenvalues[len(eigenvalues) // 2].item()
    if spectrum.tail is not None:
        start = min(start, spectrum.tail.xmin)
    return start / max(eigenvalues[-1].item(), 1e-300)


def _described(
    matrices: list[Tensor], dtype: torch.dtype, method: Literal["gram", "svd"], floor: float
) -> LayerSpectrum:
    shape = (len(matrices[0]), matrices[0].shape[1])
    pooled = torch.cat([squared_singular_values(matrix, dtype=dtype, method=method) for matrix in matrices])
    eigenvalues = pooled.double().cpu().sort().values
    how = "svd" if method == "svd" else f"gram-{str(dtype).removeprefix('torch.')}"
    values, skipped = dict.fromkeys(_NAMES, math.nan), dict[str, str]()
    top = eigenvalues[-1].item()
    values["spectral_norm"] = math.sqrt(top)
    if top == 0:
        skipped |= dict.fromkeys((n for n in _NAMES if n != "spectral_norm"), "all weights are 0")
        return LayerSpectrum(shape, eigenvalues, how, values, skipped)
    kept = eigenvalues[eigenvalues > floor * top]
    _add_ranks(values, skipped, kept)
    tail = _add_tail(values, skipped, eigenvalues, kept)
    bulk = _add_bulk(values, skipped, eigenvalues, kept, shape)
    return LayerSpectrum(shape, eigenvalues, how, values, skipped, tail, bulk)


def _add_ranks(values: dict[str, float], skipped: dict[str, str], kept: Tensor) -> None:
    s = kept.sqrt()
    shares = s / s.sum()
    values["stable_rank"] = (kept.sum() / kept[-1]).item()
    values["effective_rank"] = (-(shares * shares.log()).sum()).exp().item()
    if len(kept) > 1:
        values["spectral_gap"] = (s[-1] / s[-2]).item()
    else:
        skipped["spectral_gap"] = "only 1 singular value above 0"


def _add_tail(
    values: dict[str, float], skipped: dict[str, str], eigenvalues: Tensor, kept: Tensor
) -> PowerLawTail | None:
    if len(kept) < _LEAST:
        _skip(skipped, _TAIL, kept)
        return None
    if eigenvalues[len(eigenvalues) // 2] < kept[0]:
        skipped["alpha_hill"] = "half of the singular values or more are 0"
    else:
        values["alpha_hill"] = hill_alpha(eigenvalues.clamp(min=kept[0].item()))
        if math.isnan(values["alpha_hill"]):
            skipped["alpha_hill"] = "the upper half of the singular values are equal"
    tail = mle_ks_alpha(kept)
    if math.isnan(tail.alpha):
        skipped |= dict.fromkeys(_TAIL[1:], "the singular values are equal")
        return None
    values |= {"alpha_ks": tail.alpha, "ks_distance": tail.distance, "tail_size": float(tail.size)}
    return tail


def _add_bulk(
    values: dict[str, float], skipped: dict[str, str], eigenvalues: Tensor, kept: Tensor, shape: tuple[int, int]
) -> MarchenkoPastur | None:
    if len(kept) < _LEAST:
        _skip(skipped, _BULK, kept)
        return None
    if len(kept) <= len(eigenvalues) // 2:
        skipped |= dict.fromkeys(_BULK, "half of the singular values or more are 0")
        return None
    law = MarchenkoPastur.fit(eigenvalues, min(shape) / max(shape))
    values["spikes"] = float((eigenvalues > spike_threshold(law, shape)).sum())
    values["mp_distance"] = law.distance(eigenvalues)
    return law


def _skip(skipped: dict[str, str], names: Iterable[str], kept: Tensor) -> None:
    reason = f"only {len(kept)} singular values above 0, a law is fitted to {_LEAST} or more"
    skipped |= dict.fromkeys(names, reason)


class WeightSpectrum:
    """The spectra of a network's weight matrices, layer by layer; frozen layers are measured too, tied ones once.

    Args:
        layers: Names of layers ("block1.0", "head"); None for every weight matrix.
        dtype: See `layer_spectrum`.
        conv: See `layer_spectrum`.
        floor: See `layer_spectrum`.
        largest: Layers whose smaller side is longer are skipped, with a reason: the time grows with its third power.

    Attributes:
        spectra: A `LayerSpectrum` per layer of the last measurement, with all eigenvalues.

    Example:
        >>> from assay.probes.view import View
        >>> model = torch.nn.Linear(300, 200, bias=False)
        >>> _ = torch.nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(0))
        >>> probe = WeightSpectrum()
        >>> values = probe.measure(View(model), [])
        >>> values["weight_spikes/model"], values["weight_mp_distance/model"] < 0.02
        (0.0, True)
    """

    dear = True

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        *,
        dtype: torch.dtype | str = torch.float64,
        conv: Literal["flatten", "slices"] = "flatten",
        floor: float = 1e-9,
        largest: int = 4096,
    ) -> None:
        self.layers = None if layers is None else list(layers)
        self.options: dict[str, Any] = {
            "dtype": getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype,
            "conv": conv,
            "floor": floor,
        }
        self.largest = largest
        self.spectra: dict[str, LayerSpectrum] = {}
        self.skipped: dict[str, str] = {}

    def measure(self, view: View, batches: Iterable[Any] = ()) -> dict[str, float]:
        """Return the quantities as "weight_<quantity>/<layer>".

        Args:
            view: The network.
            batches: Not looked at.

        Raises:
            InvalidInput: If a layer is unknown, the model has no weight matrix, or one is not finite.
        """
        self.spectra, self.skipped = {}, {}
        values: dict[str, float] = {}
        for layer, weight in weight_matrices(view.model, self.layers).items():
            keys = {name: f"weight_{name}/{layer}" for name in _NAMES}
            matrix = as_matrix(weight)
            if (side := min(matrix.shape)) > self.largest:
                values |= dict.fromkeys(keys.values(), math.nan)
                reason = f"its smaller side is {side}, above largest={self.largest}"
                self.skipped |= dict.fromkeys(keys.values(), reason)
                continue
            spectrum = self.spectra[layer] = layer_spectrum(weight, **self.options)
            values |= {keys[name]: value for name, value in spectrum.values.items()}
            self.skipped |= {keys[name]: reason for name, reason in spectrum.skipped.items()}
        return values

    def figure(self) -> Figure:
        """Return one panel per layer: the spectrum, the Marchenko-Pastur law and the fitted tail, on log scales.

        Raises:
            InvalidInput: If nothing was measured yet.
        """
        from matplotlib.figure import Figure

        if not self.spectra:
            raise InvalidInput("nothing to show yet; call measure before figure")
        columns = min(3, len(self.spectra))
        rows = -(-len(self.spectra) // columns)
        figure = Figure(figsize=(4.2 * columns, 3 * rows), layout="constrained")
        for index, (layer, spectrum) in enumerate(self.spectra.items()):
            _draw(figure.add_subplot(rows, columns, index + 1), layer, spectrum)
        return figure


def _draw(axes: Any, layer: str, spectrum: LayerSpectrum) -> None:
    shown = spectrum.eigenvalues[spectrum.eigenvalues > 1e-6 * spectrum.eigenvalues[-1]]
    axes.set(title=f"{layer} ({spectrum.shape[0]} x {spectrum.shape[1]})", xlabel="eigenvalue", ylabel="density")
    if len(shown) == 0 or not shown[-1] > shown[0]:
        return
    low, high = shown[0].log10().item(), shown[-1].log10().item()
    bins = torch.logspace(low, high, 61, dtype=torch.float64)
    bins[0], bins[-1] = shown[0], shown[-1]
    axes.hist(shown.numpy(), bins=bins.numpy(), density=True, color="0.75", label="eigenvalues")
    if spectrum.bulk is not None:
        density = spectrum.bulk.density(grid := torch.logspace(low, high, 400, dtype=torch.float64))
        inside = density > 0
        axes.plot(grid[inside], density[inside], color="C0", label="Marchenko-Pastur")
    if (tail := spectrum.tail) is not None:
        grid = torch.logspace(math.log10(tail.xmin), high, 50, dtype=torch.float64)
        share = tail.size / len(shown) * (tail.alpha - 1) / tail.xmin
        line = share * (grid / tail.xmin) ** -tail.alpha
        axes.plot(grid, line, "--", color="C1", label=f"exponent {tail.alpha:.2f}")
    axes.set(xscale="log", yscale="log")
    axes.legend(fontsize="small", frameon=False)
