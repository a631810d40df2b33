"""Activation sparsity: the share of a layer's neurons that a token makes active, which they are, what it would save.

Paper: "The Lazy Neuron Phenomenon" (Li et al., ICLR 2023, arXiv:2210.06313), section 2: with the MLP
y = W_2 relu(W_1 x + b_1) + b_2 the density of a layer is the mean over tokens of #{i : relu(.)_i > 0} / d_ff.

    activation_density     active entries / all entries        dead_neurons   neurons that no token made active / d_ff
    effective_width        (sum_i f_i)^2 / sum_i f_i^2, f_i the share of tokens that make neuron i active
    flops_saved            2 d_out per zero read by an `nn.Linear` / all operations of the forward pass, as counted

Shapes: activations (..., d_ff); of images (B, C, H, W) a channel is a neuron and a pixel a token. An entry is active if
|a| > threshold * (largest |a| of its token); 0 counts what is not exactly zero.

Departures: GELU and SiLU have no exact zeros, so theirs are counted with threshold 0.01 unless one is given (the paper
measures ReLU networks). Only products with the activation itself are saved: the first product, W_1 x, could be left out
only if one knew beforehand which neurons stay silent. Saved operations are counted per token; a batch as a whole needs
nearly all rows of W_2, so they are no promise of time.

Cost: one forward pass and two passes over each activation; d_ff integers per layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes._activations import NOTHING_FOUND, Reading, found_readings, hooked, is_finite, is_smooth, neuron_dim
from assay.probes.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ActivationSparsity", "active_entries"]

SMOOTH_THRESHOLD = 0.01
_KEYS = ("activation_density", "dead_neurons", "effective_width")


def active_entries(activation: Tensor, threshold: float = 0.0, dim: int = -1) -> Tensor:
    """Return which entries are active, as booleans of the activation's shape.

    Args:
        activation: Floats (..., d_ff), or with the neurons along `dim`.
        threshold: Share of the token's largest absolute value that an entry must exceed, in [0, 1).
        dim: The dimension of neurons.

    Example:
        >>> active_entries(torch.tensor([[0.0, 0.5, 2.0]])).tolist()
        [[False, True, True]]
        >>> active_entries(torch.tensor([[0.0, 0.5, 2.0]]), threshold=0.3).tolist()
        [[False, False, True]]
    """
    if threshold == 0:
        return activation != 0
    size = activation.abs()
    return size > threshold * size.amax(dim, keepdim=True)


class ActivationSparsity:
    """Density of activations, dead neurons and effective width, by layer and on average over layers.

    Args:
        layers: Names of modules whose outputs are activations; None finds all modules of an activation's type.
        inputs_of: Names of modules whose first input is an activation, for networks that call F.relu: the second
            linear layer of an MLP.
        threshold: An entry's least size in units of its token's largest, in [0, 1); None is 0, and 0.01 for GELU
            and the like.
        mask: Maps the inputs of a batch to booleans (B, T): which tokens count. For inputs with an attention mask:
            `operator.itemgetter("attention_mask")`.
        dim: The dimension of neurons; None is 1 for images (B, C, H, W) and the last otherwise.
        count_flops: Whether operations are counted too, which slows the forward pass down.

    Attributes:
        frequencies: Of the last measurement, the share of tokens that make each neuron active, (d_ff,) by layer.
        thresholds: The threshold used, by layer.
        skipped: Why a value is NaN.

    Raises:
        InvalidInput: If the threshold is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> _ = nn.init.eye_(model[0].weight), nn.init.zeros_(model[0].bias)
        >>> probe = ActivationSparsity()
        >>> values = probe.measure(View(model), [(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([0, 1]))])
        >>> values["activation_density"], values["dead_neurons/1"], probe.frequencies["1"].tolist()
        (0.375, 0.5, [1.0, 0.5, 0.0, 0.0])
    """

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        *,
        inputs_of: Sequence[str] = (),
        threshold: float | None = None,
        mask: Callable[[Any], Tensor] | None = None,
        dim: int | None = None,
        count_flops: bool = False,
    ) -> None:
        if threshold is not None and not 0 <= threshold < 1:
            raise InvalidInput(f"threshold must lie in [0, 1), not {threshold}")
        self.layers, self.inputs_of, self.threshold = layers, inputs_of, threshold
        self.mask, self.dim, self.count_flops = mask, dim, count_flops
        self.skipped: dict[str, str] = {}
        self.frequencies: dict[str, Tensor] = {}
        self.thresholds: dict[str, float] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return the quantities "<name>" (mean over layers) and "<name>/<layer>".

        Args:
            view: The network, which may return anything; scores are not looked at.
            batches: Pairs of inputs and targets; targets are not looked at.

        Raises:
            InvalidInput: If a named layer is not there, or an activation has no neurons or does not fit the mask.
        """
        self.skipped, self.frequencies, self.thresholds = {}, {}, {}
        readings = found_readings(view, self.layers, self.inputs_of)
        if not readings:
            reason = NOTHING_FOUND.format(type(view.model).__name__)
            return {key: self._skip(key, reason) for key in self._keys()}
        tally = _Tally(self, readings)
        with torch.no_grad():
            for x, _ in batches:
                tally.run(view, x)
        return self._values(tally)

    def figure(self) -> Figure:
        """Return a figure of the last measurement: firing frequencies of each layer's neurons, sorted."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.add_subplot(xlabel="neuron (share of the layer)", ylabel="share of tokens that make it active")
        for name, frequency in self.frequencies.items():
            share = torch.linspace(0, 1, len(frequency)).numpy()
            axes.plot(share, frequency.sort(descending=True).values.numpy(), label=name)
        axes.set_ylim(0, None)
        if self.frequencies:
            axes.legend()
        return figure

    def _keys(self) -> tuple[str, ...]:
        return (*_KEYS, "flops_saved") if self.count_flops else _KEYS

    def _skip(self, key: str, reason: str) -> float:
        self.skipped[key] = reason
        return math.nan

    def _values(self, tally: _Tally) -> dict[str, float]:
        """Return the means over layers, then each layer's values."""
        values: dict[str, float] = {}
        for name in [r.name for r in tally.readings if r.name not in tally.active]:
            tally.broken[name] = "the layer did not run"
            tally.active[name], tally.tokens[name] = torch.zeros(0), 0
        for layer, active in tally.active.items():
            self.frequencies[layer] = (active / max(1, tally.tokens[layer])).cpu()
            reason = tally.broken.get(layer, "no token makes any neuron active" if tally.tokens[layer] else "no tokens")
            for key, value in _summary(active, tally.tokens[layer]).items():
                undefined = layer in tally.broken or math.isnan(value)
                values[f"{key}/{layer}"] = self._skip(f"{key}/{layer}", reason) if undefined else value
        means = {}
        for key in _KEYS:
            of_layers = [value for name, value in values.items() if name.startswith(f"{key}/")]
            mean = sum(of_layers) / len(of_layers)
            means[key] = self._skip(key, "a layer's is NaN") if math.isnan(mean) else mean
        if self.count_flops:
            reason = "a layer is undefined" if tally.broken else "the forward pass has no operation that is counted"
            undefined = bool(tally.broken) or not tally.flops
            means["flops_saved"] = self._skip("flops_saved", reason) if undefined else tally.saved / tally.flops
        return means | values


def _summary(active: Tensor, tokens: int) -> dict[str, float]:
    """Return the three quantities of a layer; NaN where there is nothing to divide by."""
    counts = active.double()
    if tokens == 0:
        return dict.fromkeys(_KEYS, math.nan)
    return {
        "activation_density": (counts.mean() / tokens).item(),
        "dead_neurons": (counts == 0).double().mean().item(),
        "effective_width": (counts.sum().square() / counts.square().sum()).item(),
    }


class _Tally:
    """Integer counts over all batches: of active entries by layer and neuron, of tokens, of operations."""

    def __init__(self, probe: ActivationSparsity, readings: list[Reading]) -> None:
        self.probe, self.readings = probe, readings
        self.active: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}
        self.broken: dict[str, str] = {}
        self.flops = self.saved = 0
        self.mask: Tensor | None = None
        self.last: tuple[Tensor, int] | None = None  # an activation and its zeros; held, so that its address is its own

    def run(self, view: View, x: Any) -> None:
        """Count one batch."""
        from torch.utils.flop_counter import FlopCounterMode

        self.mask = None if self.probe.mask is None else self.probe.mask(x).bool()
        self.last = None
        counter = FlopCounterMode(display=False) if self.probe.count_flops else nullcontext()
        linear = [m for m in view.model.modules() if isinstance(m, nn.Linear)] if self.probe.count_flops else []
        with hooked(self.readings, self.count, numbered=view.rule is None):
            handles = [m.register_forward_pre_hook(self.read) for m in linear]
            try:
                with counter:
                    view.output(x)
            finally:
                for handle in handles:
                    handle.remove()
        self.flops += counter.get_total_flops() if isinstance(counter, FlopCounterMode) else 0

    def count(self, name: str, module: nn.Module, activation: Tensor) -> None:
        """Take in one activation."""
        a, dim = activation.detach(), neuron_dim(name, activation, self.probe.dim)
        given = self.probe.threshold
        threshold = (SMOOTH_THRESHOLD if is_smooth(module) else 0.0) if given is None else given
        self.probe.thresholds[name] = threshold
        if not is_finite(a):
            self.broken[name] = "the activation contains NaN or infinity"
        entries = active_entries(a, threshold, dim)
        tokens = a.numel() // max(1, a.shape[dim])
        if self.probe.count_flops:
            self.last = (a, a.numel() - int(a.count_nonzero()))  # exact zeros, whatever the threshold
        if self.mask is not None:
            entries, tokens = self._masked(name, entries, dim)
        others = [i for i in range(a.ndim) if i != a.ndim + dim]
        rows = entries.flatten(0, -2) if dim == -1 else entries
        # As bytes into 32 bits: several times faster than summing booleans over several dimensions.
        counts = rows.view(torch.uint8).sum([0] if dim == -1 else others, dtype=torch.int32).long()
        if name in self.active and len(self.active[name]) != len(counts):
            raise InvalidInput(f"layer {name!r} had {len(self.active[name])} neurons, now {len(counts)}; leave it out")
        self.active[name] = self.active.get(name, 0) + counts
        self.tokens[name] = self.tokens.get(name, 0) + tokens

    def _masked(self, name: str, entries: Tensor, dim: int) -> tuple[Tensor, int]:
        mask = self.mask
        tokens = entries.movedim(dim, -1)
        if mask is None or mask.shape != tokens.shape[:-1]:
            shape = None if mask is None else tuple(mask.shape)
            raise InvalidInput(f"the mask has shape {shape}, the tokens at {name!r} {tuple(tokens.shape[:-1])}")
        return (tokens & mask[..., None].to(tokens.device)).movedim(-1, dim), int(mask.sum())

    def read(self, layer: nn.Linear, args: tuple[Any, ...]) -> None:
        """Count what a linear layer could leave out, if it reads the last activation itself (dropout passes it on)."""
        if self.last is None or not args or not isinstance(args[0], Tensor):
            return
        activation, zeros = self.last
        if args[0].data_ptr() == activation.data_ptr() and args[0].numel() == activation.numel():
            self.saved += 2 * zeros * layer.out_features
