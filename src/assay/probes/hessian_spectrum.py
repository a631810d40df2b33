"""The whole spectrum of the Hessian (or Gauss-Newton, or Fisher matrix): density, edges, trace, outliers, with errors.

Sagun, Evci, Guney, Dauphin, Bottou (2017, arXiv:1706.04454); the estimator is that of Ghorbani, Krishnan, Xiao (2019),
see `assay.probes.estimate_spectrum`. What the paper sees: a bulk at zero that grows with the parameters, and a few
outliers that the data decide.

Convention: mean loss over the data, eval mode, trainable parameters (`assay.probes.CurvatureMatrix`). Outliers are
counted among Ritz values that have converged to eigenvalues, never among peaks of the density, and in one draw: an
eigenvalue that occurs several times counts once.
Cost: steps x draws products, each about two gradients over the data; memory of `steps` vectors for each draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._curvature import groups_of, why_not
from assay.probes.curvature_matrix import CurvatureMatrix, Matrix
from assay.probes.outlier_count import count_above, count_before_gap
from assay.probes.spectral_density import Estimate, SpectralDensity, estimate_spectrum
from assay.probes.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["HessianSpectrum"]

_QUANTITIES = ("max", "min", "mean", "mean_square", "bulk_share", "outliers", "gap")
_ERRORS = ("mean_error", "mean_square_error", "bulk_share_error")


class HessianSpectrum:
    """Density and counts by stochastic Lanczos quadrature.

    Args:
        matrix: "hessian", "ggn", "fisher" or "empirical-fisher".
        steps: Lanczos steps per draw; 80 to 100 resolve a trained network's density.
        draws: Random start vectors; 1 gives a usable picture, 2 or more give errors.
        groups: Modules or parameters whose diagonal blocks get a spectrum too; "layers" for all.
        reorthogonalize: False needs three vectors instead of `steps`, lets copies of eigenvalues appear, and so gives
            no counts.
        dtype: Precision of the products; the model's if None. Eigenvalues below about 1e-6 of the largest are noise in
            float32.
        seed: Of the start vectors.
        memory: Bytes for the vectors.

    Attributes:
        spectra: The last measurement's `SpectralDensity` by group; "" is the whole network.
        skipped: Why a value is NaN, by name.

    Example:
        >>> import torch
        >>> view = View(torch.nn.Linear(3, 2))
        >>> data = [(torch.eye(3), torch.tensor([0, 1, 0]))]
        >>> probe = HessianSpectrum(steps=8)
        >>> values = probe.measure(view, data)
        >>> values["hessian_max"] > 0 and abs(values["hessian_min"]) < 1e-6, len(probe.spectra[""].nodes[0])
        (True, 8)
    """

    dear: ClassVar[bool] = True

    def __init__(
        self,
        matrix: Matrix = "hessian",
        *,
        steps: int = 90,
        draws: int = 1,
        groups: str | Sequence[str] = (),
        reorthogonalize: bool = True,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        memory: int = 2**30,
    ) -> None:
        if steps < 1 or draws < 1:
            raise InvalidInput(f"steps and draws must be at least 1, not {steps} and {draws}")
        self.matrix, self.groups, self.dtype = matrix, groups, dtype
        self.options = {"steps": steps, "draws": draws, "reorthogonalize": reorthogonalize, "seed": seed}
        self.memory, self.reorthogonalize = memory, reorthogonalize
        self.spectra: dict[str, SpectralDensity] = {}
        self.skipped: dict[str, str] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return what the spectrum says in numbers.

        Args:
            view: The network; its `loss` must average over the batch.
            batches: Pairs of inputs and targets; gone through more than once.

        Returns:
            "hessian_max", "hessian_min"; "hessian_mean" (trace / P), "hessian_mean_square" and "hessian_bulk_share"
            with "..._error" each; "hessian_outliers" and "hessian_gap" (see `assay.probes.count_above` and
            `count_before_gap`). "/<group>" follows for groups, another matrix's name takes the place of "hessian". NaN
            (`skipped` says why) where the network is not finite, the rule does not predict by the model's own forward
            pass, the vectors do not fit `memory`, an error has one draw, or too few eigenvalues have converged.
        """
        self.skipped, self.spectra = {}, {}
        reason, classes = why_not(view, batches)
        values: dict[str, float] = {}
        for suffix, names in groups_of(view, self.groups).items():
            found = {} if reason else self._numbers(view, batches, names, classes, suffix)
            for quantity in (*_QUANTITIES, *_ERRORS):
                key = f"{self.matrix}_{quantity}{suffix}"
                values[key] = found.get(quantity, math.nan)
                if reason:
                    self.skipped[key] = reason
        return values

    def figure(self) -> Figure:
        """Return a plot of the last measurement: log density with its standard error, one panel per group."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 1 + 2.2 * max(len(self.spectra), 1)), layout="constrained")
        panels = figure.subplots(max(len(self.spectra), 1), squeeze=False)[:, 0]
        for axes, (group, spectrum) in zip(panels, self.spectra.items(), strict=False):
            grid, density, error = spectrum.density("papyan")
            axes.semilogy(grid, density.clamp(min=1e-8))
            axes.fill_between(grid, (density - error).clamp(min=1e-8), density + error, alpha=0.3)
            top = spectrum.largest()
            axes.plot(top, torch.full_like(top, 1e-7), "|", color="black")
            axes.set(title=group or "all parameters", xlabel=f"eigenvalue of the {self.matrix}", ylabel="density")
            axes.set_ylim(bottom=3e-8)
        return figure

    def _numbers(
        self, view: View, batches: Iterable[tuple[Any, Tensor]], names: list[str] | None, classes: int, suffix: str
    ) -> dict[str, float]:
        matrix = CurvatureMatrix(view, None, batches, matrix=self.matrix, parameters=names, dtype=self.dtype)
        if not math.isfinite(matrix.loss):
            self._skip(suffix, (*_QUANTITIES, *_ERRORS), f"the loss is {matrix.loss}")
            return {}
        try:
            spectrum = estimate_spectrum(matrix, **self.options, memory=self.memory)  # type: ignore[arg-type]
        except InvalidInput as error:  # too large for the memory, or a product that is not finite: training goes on
            self._skip(suffix, (*_QUANTITIES, *_ERRORS), str(error))
            return {}
        self.spectra[suffix.removeprefix("/")] = spectrum
        low, high = spectrum.extremes()
        band = 1e-3 * max(high, 0.0)
        estimates: dict[str, Estimate] = {
            "mean": spectrum.moment(1),
            "mean_square": spectrum.moment(2),
            "bulk_share": spectrum.share(-band, band),
        }
        numbers = {"max": high, "min": low} | {name: e.value for name, e in estimates.items()}
        numbers |= {f"{name}_error": e.error for name, e in estimates.items()}
        if any(math.isnan(e.error) for e in estimates.values()):
            self._skip(suffix, _ERRORS, "an error needs at least two draws")
        return numbers | self._counts(spectrum, classes, suffix)

    def _counts(self, spectrum: SpectralDensity, classes: int, suffix: str) -> dict[str, float]:
        top = spectrum.largest() if self.reorthogonalize else torch.zeros(0)
        numbers: dict[str, float] = {}
        if len(top) and top[0] > 0 and top[-1] <= 0.1 * top[0]:
            numbers["outliers"] = float(count_above(top))
        if len(top) > 3 * classes:
            numbers["gap"] = float(count_before_gap(top, 3 * classes))
        why = "raise steps: too few eigenvalues have converged" if self.reorthogonalize else "it may count copies"
        self._skip(suffix, [name for name in ("outliers", "gap") if name not in numbers], why)
        return numbers

    def _skip(self, suffix: str, quantities: Sequence[str], why: str) -> None:
        self.skipped |= {f"{self.matrix}_{quantity}{suffix}": why for quantity in quantities}
