"""Samplers of multiplicative diffusion: from log-normal noise to data by factors.

Paper: "Dale meets Langevin" (arXiv:2510.02730; v1 has the first of the two, v2 the second, called sign-agnostic),
reversed geometric Brownian motion with volatility sigma and drift mu. With h(x, t) = x o grad log p_t(x), steps of size
delta and fresh Z ~ N(0, I), from t = 1 down:

    Dale-Langevin    x <- x o exp(delta sigma^2 h - delta (mu - 1.5 sigma^2) + sqrt(delta) sigma Z)
    unconstrained    x <- x o (1 + 2 delta sigma^2 - delta mu + delta sigma^2 h + sqrt(delta) sigma Z)

The first steps in log x and never changes a sign, whatever h is; the second is Euler's step in x and may. They agree as
delta tends to 0.

Shapes: x and h (B, ...); t (B,).
Departures: by default one step of size 1 / N per level, which is the derivation; the official code has configurations
with several inner steps of another size and noise annealed level by level (such as 3 steps and 0.995), which
`inner_steps`, `step_size` and `anneal` give. Its optional last steps without noise are left out.
Cost: N inner_steps passes of the network.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["DaleLangevinSampler", "UnconstrainedMultiplicativeSampler"]


class DaleLangevinSampler:
    """Sampler whose every step multiplies by a positive factor.

    Args:
        scaled_score: Function (x, t) -> h = x o grad log p_t(x), such as `assay.models.MultiplicativeScoreNet`.
        sigma: Volatility of the noise that it was trained on, above 0.
        mu: Its drift; None is sigma^2 / 2.
        n_steps: N, levels of noise; level k has t = k / N.
        inner_steps: Steps per level.
        step_size: delta; None is 1 / (N inner_steps), the reverse process itself.
        anneal: Noise of the first level is as it is, of each next one multiplied by this once more.

    Raises:
        InvalidInput: On an option out of its range.

    Example:
        >>> sampler = DaleLangevinSampler(lambda x, t: -1 - x.log() / 0.64, n_steps=4)  # any h will do
        >>> x = sampler(torch.ones(2, 3), generator=torch.Generator().manual_seed(0))
        >>> x.shape, bool((x > 0).all())
        (torch.Size([2, 3]), True)
    """

    def __init__(
        self,
        scaled_score: Callable[[Tensor, Tensor], Tensor],
        sigma: float = 0.8,
        mu: float | None = None,
        n_steps: int = 1000,
        *,
        inner_steps: int = 1,
        step_size: float | None = None,
        anneal: float = 1.0,
    ) -> None:
        for name, count in (("n_steps", n_steps), ("inner_steps", inner_steps)):
            if count < 1:
                raise InvalidInput(f"{name} must be at least 1, not {count}")
        step_size = 1 / (n_steps * inner_steps) if step_size is None else step_size
        for name, value in (("sigma", sigma), ("step_size", step_size)):
            if not 0 < value < math.inf:
                raise InvalidInput(f"{name} must be a finite number above 0, not {value}")
        if not 0 <= anneal <= 1:
            raise InvalidInput(f"anneal must be between 0 and 1, not {anneal}")
        self.scaled_score, self.sigma, self.mu = scaled_score, sigma, sigma**2 / 2 if mu is None else mu
        self.n_steps, self.inner_steps, self.step_size, self.anneal = n_steps, inner_steps, step_size, anneal

    def __call__(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return samples.

        Args:
            x: Where to start, (B, ...), such as `assay.data.log_normal_like` of noised data.
            generator: Draws the noise; None is torch's global generator.
        """
        return deque(self.trajectory(x, generator=generator), maxlen=1).pop()

    @torch.no_grad()
    def trajectory(self, x: Tensor, *, generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """Yield x after each of the steps, as `__call__` takes them."""
        for level, k in enumerate(range(self.n_steps, 0, -1)):
            t = torch.full((len(x),), k / self.n_steps, dtype=x.dtype, device=x.device)
            for _ in range(self.inner_steps):
                z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
                x = x * self._factor(self.scaled_score(x, t), self.anneal**level * z)
                yield x

    def _factor(self, h: Tensor, noise: Tensor) -> Tensor:
        """Return what x is multiplied by, given h and standard normal noise."""
        delta, sigma = self.step_size, self.sigma
        return torch.exp(delta * (sigma**2 * h - self.mu + 1.5 * sigma**2) + math.sqrt(delta) * sigma * noise)


class UnconstrainedMultiplicativeSampler(DaleLangevinSampler):
    """Sampler by Euler's steps in x itself, whose factors may be negative; arguments as `DaleLangevinSampler`.

    Values may become negative where steps are large. There log x does not exist: a score that takes it gives NaN.

    Example:
        >>> sampler = UnconstrainedMultiplicativeSampler(lambda x, t: -torch.ones_like(x), n_steps=1, mu=0.0, sigma=1.0)
        >>> sampler(torch.ones(5000, 1), generator=torch.Generator().manual_seed(0)).min() < 0
        tensor(True)
    """

    def _factor(self, h: Tensor, noise: Tensor) -> Tensor:
        delta, sigma = self.step_size, self.sigma
        return 1 + delta * (sigma**2 * (h + 2) - self.mu) + math.sqrt(delta) * sigma * noise
