"""A simulated physical system: a random scattering medium whose detectors measure saturating amplitudes.

It stands for the cavities of Momeni et al. (arXiv:2304.11042), whose hardware is a wave system with an unknown linear
scattering matrix and a detector that sees no phase. With n inputs and m detectors

    v = |h| sqrt(n) / |h|_2,   z = |T v|,   p(h) = z / (1 + saturation z^2),   T complex, entries of variance 1 / n

where T = (T_r + i T_i) / sqrt(2 n) with standard normal T_r, T_i. The source has a fixed power, hence the
normalisation, and drives with amplitudes, hence |h|.

Shapes: h (..., n) -> (..., m); `transmission` (2 m, n), real above imaginary part.
Departures: the official code replaces its hardware by networks fitted to measurements; this one has no data to fit.
Cost: 4 m n multiplications and additions per sample.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["RandomScattering"]

TINY = 1e-12


class RandomScattering(nn.Module):
    """Random complex scattering of a normalised input, measured as saturating amplitudes.

    Args:
        in_features: Inputs n.
        out_features: Detectors m.
        saturation: How strongly detectors saturate, 0 or larger; 0.2 puts the largest response near z = 2.2.
        noise: Standard deviation of the detectors' noise. It is drawn anew in training mode; in evaluation mode every
            call draws the same, so that a prediction can be repeated.
        generator: Draws the scattering matrix, and the seed of the noise; None is torch's global generator.

    Attributes:
        transmission: T as a buffer (2 m, n): nothing in the system is trained.

    Raises:
        InvalidInput: If a number is out of range.

    Example:
        >>> system = RandomScattering(3, 5, generator=torch.Generator().manual_seed(0))
        >>> h = torch.ones(2, 3)
        >>> system(h).shape, torch.allclose(system(h), system(7 * h))
        (torch.Size([2, 5]), True)
    """

    transmission: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        saturation: float = 0.2,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if in_features < 1 or out_features < 1 or not saturation >= 0 or not noise >= 0:
            raise InvalidInput(
                f"expected sizes of at least 1, saturation >= 0 and noise >= 0; got {in_features}, {out_features}, "
                f"{saturation} and {noise}"
            )
        super().__init__()
        self.in_features, self.out_features, self.saturation, self.noise = in_features, out_features, saturation, noise
        self.register_buffer("transmission", self._draw(generator))
        self._seed = int(torch.randint(2**62, (), generator=generator))
        self._noise_generator = torch.Generator().manual_seed(self._seed)

    def _draw(self, generator: torch.Generator | None) -> Tensor:
        n, m = self.in_features, self.out_features
        return torch.randn(2 * m, n, generator=generator) / math.sqrt(2 * n)

    def forward(self, h: Tensor) -> Tensor:
        """Return what the detectors measure (..., m) for inputs (..., n)."""
        v = F.normalize(h.abs(), dim=-1) * math.sqrt(self.in_features)
        real, imaginary = F.linear(v, self.transmission).chunk(2, dim=-1)
        power = real.square() + imaginary.square()
        measured = (power + TINY).sqrt() / (1 + self.saturation * power)
        return measured + self.noise * self._draw_noise(measured) if self.noise else measured

    def _draw_noise(self, like: Tensor) -> Tensor:
        generator = self._noise_generator if self.training else torch.Generator().manual_seed(self._seed)
        return torch.randn(like.shape, generator=generator).to(like)

    def twin(self, mismatch: float, generator: torch.Generator | None = None) -> RandomScattering:
        """Return a noiseless digital model of the system that is wrong by `mismatch` T', T' drawn as T was.

        Args:
            mismatch: 0 for a perfect model.
            generator: Draws T'; None is torch's global generator.
        """
        model = copy.deepcopy(self)
        model.noise = 0.0
        model.drift(mismatch, generator)
        return model

    @torch.no_grad()
    def drift(self, amount: float, generator: torch.Generator | None = None) -> None:
        """Change the system in place: T <- T + amount T', T' drawn as T was.

        Args:
            amount: Relative size of the change.
            generator: Draws T'; None is torch's global generator.
        """
        self.transmission = self.transmission + amount * self._draw(generator).to(self.transmission)

    def get_extra_state(self) -> Tensor:
        """Return the noise's seed in evaluation (8 bytes) and its state in training, so that both go on the same."""
        return torch.cat([torch.tensor([self._seed]).view(torch.uint8), self._noise_generator.get_state()])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` returned."""
        seed, generator = state.cpu()[:8].clone(), state.cpu()[8:].clone()
        self._seed = int(seed.view(torch.int64))
        self._noise_generator.set_state(generator)

    def extra_repr(self) -> str:
        """Show sizes, saturation and noise."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, saturation={self.saturation:g}, noise={self.noise:g}"
