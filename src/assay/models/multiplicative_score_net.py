"""A small network that predicts multiplicative noise, and with it the scaled score of positive data at any noise level.

For multiplicative diffusion as in "Dale meets Langevin" (arXiv:2510.02730), which uses a conditional RefineNet. It sees
y = log x and features of t, predicts the standard normal noise eps in y, and returns the scaled score

    h(x, t) = x o grad log p_t(x) = -1 - eps(y, t) / (sigma sqrt(t))

For independent log-normal entries, log x_0 ~ N(m, s^2), the noise to expect is sigma sqrt(t) (y - m) / v with
v = s^2 + sigma^2 t; a network F corrects it, scaled as by Karras et al. (arXiv:2206.00364), since without that it would
have to amplify its input without bound as t tends to 0:

    eps(y, t) = sigma sqrt(t) (y - m) / v - s / sqrt(v) F((y - m) / sqrt(v), t)

Shapes: x and h (B, ...) with d entries, t (B,) in (0, 1].
Architecture of F: (its input, cos and sin of t at frequencies 1 to 2^8) -> width -> residual SiLU layers -> d. The last
layer starts at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._layers import linear

__all__ = ["MultiplicativeScoreNet"]

HIGHEST_OCTAVE = 8


class MultiplicativeScoreNet(nn.Module):
    """Fully connected residual network of (x, t) -> h.

    Args:
        input_shape: Shape of one sample.
        sigma: Volatility of the noise; mu must be sigma^2 / 2.
        width: Units of each hidden layer.
        depth: Residual layers.
        log_mean: m, the mean of log x_0 over samples and entries; 0.2 is about that of images in [1, 2].
        log_deviation: s, the deviation likewise, above 0.
        time_features: Features of t, even.
        generator: Draws the initial weights; None is torch's global generator.

    Raises:
        InvalidInput: If a size or sigma is out of range.

    Example:
        >>> net = MultiplicativeScoreNet((1, 4, 4), width=8, depth=1, log_mean=0.0)
        >>> net(torch.ones(5, 1, 4, 4), torch.full((5,), 0.5)).unique()  # at first, that of independent log-normals
        tensor([-1.], grad_fn=<Unique2Backward0>)
    """

    frequencies: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        sigma: float = 0.8,
        width: int = 512,
        depth: int = 3,
        *,
        log_mean: float = 0.2,
        log_deviation: float = 0.3,
        time_features: int = 32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if width < 1 or depth < 0 or time_features < 2 or time_features % 2:
            raise InvalidInput(
                f"expected width >= 1, depth >= 0 and an even number of time features >= 2; got {width}, {depth} and "
                f"{time_features}"
            )
        for name, value in (("sigma", sigma), ("log_deviation", log_deviation)):
            if not 0 < value < math.inf:
                raise InvalidInput(f"{name} must be a finite number above 0, not {value}")
        self.input_shape, self.sigma = tuple(input_shape), sigma
        self.log_mean, self.log_deviation = log_mean, log_deviation
        d = math.prod(input_shape)
        octaves = torch.linspace(0, HIGHEST_OCTAVE, time_features // 2)
        self.register_buffer("frequencies", math.pi / 2 * 2**octaves)
        self.enter = linear(d + time_features, width, generator=generator)
        self.hidden = nn.ModuleList(linear(width, width, generator=generator) for _ in range(depth))
        self.leave = linear(width, d, generator=generator)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def noise(self, log_x: Tensor, t: Tensor) -> Tensor:
        """Return the predicted noise (B, ...) in log x at times t (B,)."""
        y, t = (log_x - self.log_mean).flatten(1), t[:, None]
        root = (self.log_deviation**2 + self.sigma**2 * t).sqrt()
        angles = t * self.frequencies
        z = self.enter(torch.cat([y / root, angles.cos(), angles.sin()], dim=1))
        for layer in self.hidden:
            z = z + nn.functional.silu(layer(z))
        correction = self.leave(nn.functional.silu(z))
        noise: Tensor = self.sigma * t.sqrt() * y / root.square() - self.log_deviation / root * correction
        return noise.view(log_x.shape)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the scaled scores (B, ...) of x (B, ...) above 0 at times t (B,) above 0."""
        scale = self.sigma * t.sqrt().view(-1, *[1] * (x.ndim - 1))
        return -1 - self.noise(x.log(), t) / scale
