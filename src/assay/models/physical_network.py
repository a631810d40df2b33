"""A network of physical and digital layers: a simulated system, a linear layer, the next system, ..., a linear head.

Momeni et al., arXiv:2304.11042. Block k is p_k followed by W_k, b_k; the systems p_k are fixed random scattering media
(`assay.nn.RandomScattering`), of which only measurements are known. With `skip`, block k reads [p_k(h), h].

Shapes: B samples with d entries (and C label slots in front), block outputs (B, width), C outputs.
Children: `flatten`, `source`, `block1` ... `block<depth>`, `head`. Initialisation is torch's default; models of
the systems draw last, so that all modes of one seed have the same systems and weights.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._layers import BlockSequential, linear
from assay.nn.physical_transform import MODES, PhysicalTransform
from assay.nn.random_scattering import RandomScattering

__all__ = ["PhysicalNetwork"]


class _Source(nn.Module):
    """Shifts the inputs and keeps entries in front of them free for a label: zeros where it comes without."""

    def __init__(self, entries: int, slots: int, shift: float) -> None:
        super().__init__()
        self.entries, self.slots, self.shift = entries, slots, shift

    def forward(self, flat: Tensor) -> Tensor:
        if flat.shape[-1] == self.entries:
            return nn.functional.pad(flat + self.shift, (self.slots, 0))
        return torch.cat([flat[..., : self.slots], flat[..., self.slots :] + self.shift], dim=-1)

    def extra_repr(self) -> str:
        return f"entries={self.entries}, slots={self.slots}, shift={self.shift:g}"


class _WithInput(nn.Module):
    """A layer's output beside its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([self.layer(h), h], dim=-1)


class PhysicalNetwork(BlockSequential):
    """Blocks of a simulated physical system and a linear layer.

    Args:
        input_shape: Shape of one sample.
        outputs: Number of scores C.
        width: Detectors of each system and units of each linear layer.
        depth: Number of blocks, at least 1.
        mode: How gradients meet the systems: "block" (they don't), "ideal" (the systems are known), "model" (in-silico
            training) or "straight-through" (physics-aware training); see `assay.nn.PhysicalTransform`.
        mismatch: Relative error of the models in the last two modes.
        noise: Standard deviation of the detectors' noise.
        shift: Added to the inputs, but not to label slots. A source drives with amplitudes, so that signs are lost; the
            paper shifts its features to be non-negative, and standardised images lie above -1.
        skip: Whether the linear layers read the systems' inputs beside their outputs.
        label_slots: Whether C entries in front of the input are kept for a label; it may come with them or without.
        generator: Draws systems, weights and models; None is torch's global generator.

    Raises:
        InvalidInput: If a size or the mode is out of range.

    Example:
        >>> PhysicalNetwork((1, 8, 8), 10, width=16)(torch.ones(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        width: int = 128,
        depth: int = 2,
        *,
        mode: str = "block",
        mismatch: float = 0.0,
        noise: float = 0.0,
        shift: float = 1.0,
        skip: bool = False,
        label_slots: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        entries = math.prod(input_shape)
        if min(entries, outputs, width, depth) < 1:
            raise InvalidInput(f"sizes must be at least 1; got {entries=}, {outputs=}, {width=}, {depth=}")
        if mode not in ("ideal", *MODES):
            raise InvalidInput(f"mode must be one of ideal, {', '.join(MODES)}, not {mode!r}")
        models = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        children: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        children["source"] = _Source(entries, outputs * label_slots, shift)
        sizes = [entries + outputs * label_slots, *[width] * depth]
        for k, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
            system = RandomScattering(fan_in, fan_out, noise=noise, generator=generator)
            layer: nn.Module = _transform(system, mode, mismatch, models)
            digital = linear(fan_out + fan_in * skip, fan_out, generator=generator)
            children[f"block{k}"] = nn.Sequential(_WithInput(layer) if skip else layer, digital)
        children["head"] = linear(width, outputs, generator=generator)
        super().__init__(children, tuple(input_shape))

    def physical_layers(self) -> list[PhysicalTransform]:
        """Return the physical layers in order."""
        return [module for module in self.modules() if isinstance(module, PhysicalTransform)]

    def drift(self, amount: float, generator: torch.Generator | None = None) -> None:
        """Change every system in place, and no model of one: T <- T + amount T'.

        Args:
            amount: Relative size of the change.
            generator: Draws the change; None is torch's global generator.
        """
        for layer in self.physical_layers():
            assert isinstance(layer.system, RandomScattering)
            layer.system.drift(amount, generator)


def _transform(system: RandomScattering, mode: str, mismatch: float, generator: torch.Generator) -> PhysicalTransform:
    if mode == "block":
        return PhysicalTransform(system, system.out_features)
    if mode == "ideal":
        return PhysicalTransform(system, system.out_features, model=system, mode="model")
    return PhysicalTransform(system, system.out_features, model=system.twin(mismatch, generator), mode=mode)
