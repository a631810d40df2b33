"""Which frequencies the nodes of a network on modular arithmetic have settled on, and how purely.

Tian (2025, arXiv:2509.21519): for the cyclic group Z_M the maxima of the energy, and so the features that emerge, are
supported on one irreducible representation, that is on one frequency k in 1..floor(M / 2). With the discrete Fourier
transform of each operand's M weights, power p_j(k) = sum over operands of |w_j(k)|^2, both signs of k together:

    share of node j      max_k p_j(k) / sum_k p_j(k)             1: a single frequency; frequency 0 is left out

Symbols: K nodes, M the modulus, R operands, weights (K, R M), operand by operand, as one-hot inputs give.

Departure: the mean over nodes is weighted by power, since decayed nodes hold noise only. Frequencies are of addition;
multiplication modulo a prime has single frequencies only after its elements are ordered by discrete logarithm.

Cost: one FFT of the weights; the data are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FrequencyConcentration", "frequency_power", "frequency_share"]

_DECAYED = 0.01  # of the mean power of a node
_KEYS = ("frequency_concentration", "frequencies_found")


def frequency_power(weight: Tensor, modulus: int) -> Tensor:
    """Return the power of each node at frequencies 1..floor(M / 2), summed over operands.

    Args:
        weight: (K, R M); the M weights of the first operand, then those of the next.
        modulus: M, at least 2.

    Returns:
        (K, floor(M / 2)); a row sums to the squared norm of the weights without their means.

    Raises:
        InvalidInput: If the width of the weights is not a multiple of M.

    Example:
        >>> import torch
        >>> wave = torch.cos(2 * torch.pi * 2 * torch.arange(7) / 7)
        >>> frequency_power(wave[None], 7).round(decimals=3)
        tensor([[0.0000, 3.5000, 0.0000]])
    """
    if modulus < 2 or weight.ndim != 2 or weight.shape[1] % max(modulus, 1):
        raise InvalidInput(f"weight must be (nodes, operands * {modulus}), not {tuple(weight.shape)}")
    operands = weight.unflatten(1, (-1, modulus))
    centred = operands - operands.mean(dim=2, keepdim=True)  # or a constant would leave its rounding errors
    spectrum = torch.fft.rfft(centred, dim=2)[:, :, 1:].abs().square().sum(dim=1)
    spectrum = spectrum * 2 / modulus  # of k and of -k
    if modulus % 2 == 0:
        spectrum[:, -1] /= 2  # the alternating mode is its own mirror image
    return spectrum


def frequency_share(weight: Tensor, modulus: int) -> tuple[Tensor, Tensor]:
    """Return the strongest frequency of each node, int64 (K,) from 1, and its share of the power (K,), 0 of none.

    Arguments as `frequency_power`.
    """
    power = frequency_power(weight, modulus)
    strongest, index = power.max(dim=1)
    return index + 1, strongest / power.sum(dim=1).clamp_min(torch.finfo(power.dtype).tiny)


class FrequencyConcentration:
    """How far the first layer of a network on addition modulo M consists of single frequencies.

    Args:
        modulus: M.
        layer: Name of an `nn.Linear` on concatenated one-hot operands, or of an `nn.Embedding` of the M numbers; the
            first that fits if not given.
        pure: Share from which a node counts as settled.

    Attributes:
        power: Of the last measurement, (K, floor(M / 2)).

    Raises:
        InvalidInput: If M is below 2.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 1, bias=False), torch.nn.ReLU(), torch.nn.Linear(1, 5))
        >>> wave = torch.cos(2 * torch.pi * torch.arange(5) / 5)
        >>> model[0].weight.data = torch.cat([wave, wave])[None]
        >>> values = FrequencyConcentration(5).measure(View(model))
        >>> {name: round(value, 3) for name, value in values.items()}
        {'frequency_concentration': 1.0, 'frequencies_found': 0.5}
    """

    def __init__(self, modulus: int, layer: str | None = None, pure: float = 0.8) -> None:
        if modulus < 2:
            raise InvalidInput(f"modulus must be at least 2, not {modulus}")
        self.modulus, self.layer, self.pure = modulus, layer, pure
        self.skipped: dict[str, str] = {}
        self.power: Tensor | None = None

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]] = ()) -> dict[str, float]:
        """Return "frequency_concentration" in (0, 1] and "frequencies_found", the share of frequencies with a node.

        Args:
            view: The network.
            batches: Not used.

        Returns:
            NaN for both if the network has no such layer or its weights are constant or not finite; `skipped` says so.

        Raises:
            InvalidInput: If the named layer does not exist or does not fit the modulus.
        """
        self.skipped, self.power = {}, None
        weight = self._weight(view.model)
        if weight is None:
            return self._skip(f"no nn.Linear reads one-hot numbers modulo {self.modulus}, no nn.Embedding holds them")
        weight = weight.detach().double().cpu()
        power = frequency_power(weight, self.modulus)
        if not (power.isfinite().all() and power.sum() > 1e-24 * weight.square().sum()):
            return self._skip("the weights are constant or not finite")
        self.power = power
        strongest, index = power.max(dim=1)
        settled = strongest > self.pure * power.sum(dim=1)
        # A node that has decayed to nothing has not found a frequency.
        settled &= power.sum(dim=1) > _DECAYED * power.sum(dim=1).mean()
        found = len(index[settled].unique()) / power.shape[1]
        return dict(zip(_KEYS, ((strongest.sum() / power.sum()).item(), found), strict=True))

    def figure(self) -> Figure:
        """Return a picture of the last measurement: the power of each node at each frequency, nodes sorted by it.

        Raises:
            InvalidInput: If nothing was measured.
        """
        if self.power is None:
            raise InvalidInput("nothing to show; call measure first, and see `skipped`")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.add_subplot()
        share = self.power / self.power.sum(dim=1, keepdim=True).clamp_min(1e-300)
        picture = axes.imshow(share[share.argmax(dim=1).argsort()].numpy(), aspect="auto", vmin=0, vmax=1)
        picture.set_extent((0.5, share.shape[1] + 0.5, len(share), 0))
        axes.set(xlabel="frequency", ylabel="node, sorted", title=f"power by frequency, modulo {self.modulus}")
        figure.colorbar(picture, label="share of the node's power")
        return figure

    def _weight(self, model: nn.Module) -> Tensor | None:
        modules = dict(model.named_modules())
        if self.layer is None:
            return next((w for m in modules.values() if (w := _operand_weights(m, self.modulus)) is not None), None)
        if self.layer not in modules:
            raise InvalidInput(f"the network has no layer {self.layer!r}; it has {', '.join(filter(None, modules))}")
        weight = _operand_weights(modules[self.layer], self.modulus)
        if weight is None:
            raise InvalidInput(f"layer {self.layer!r} has no weight for each number 0..{self.modulus - 1}")
        return weight

    def _skip(self, reason: str) -> dict[str, float]:
        self.skipped = dict.fromkeys(_KEYS, reason)
        return dict.fromkeys(_KEYS, math.nan)


def _operand_weights(module: nn.Module, modulus: int) -> Tensor | None:
    if isinstance(module, nn.Linear) and module.in_features % modulus == 0:
        return module.weight
    if isinstance(module, nn.Embedding) and module.num_embeddings == modulus:
        return module.weight.T
    return None
