"""A small network that predicts multiplicative noise, and with it the scaled score of positive data at any noise level.

For multiplicative diffusion as in "Dale meets Langevin" (arXiv:2510.02730), which uses a conditional RefineNet. It sees
y = log x_t and features of t, predicts the standard normal noise eps in y, and returns

    h(x, t) = x o grad log p_t(x) = -1 - eps(log x, t) / (sigma sqrt(t))

Shapes: x and h (B, ...) with d entries, t (B,) in (0, 1].
Architecture: (log x, cos and sin of t at frequencies 1 to 2^8) -> width -> residual SiLU layers -> d. The last layer starts
at 0, and so h at -1, the scaled score of a density that is flat in log x.
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
        sigma: Volatility of the noise, above 0.
        width: Units of each hidden layer.
        depth: Residual layers.
        time_features: Features of t, even.
        generator: Draws the initial weights; None is torch's global generator.

    Raises:
        InvalidInput: If a size or sigma is out of range.

    Example:
        >>> net = MultiplicativeScoreNet((1, 4, 4), width=8, depth=1)
        >>> h = net(torch.ones(5, 1, 4, 4), torch.full((5,), 0.5))
        >>> h.shape, h.unique()
        (torch.Size([5, 1, 4, 4]), tensor([-1.], grad_fn=<Unique2Backward0>))
    """

    frequencies: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        sigma: float = 0.8,
        width: int = 512,
        depth: int = 3,
        *,
        time_features: int = 32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if width < 1 or depth < 0 or time_features < 2 or time_features % 2:
            raise InvalidInput(
                f"expected width >= 1, depth >= 0 and an even number of time features >= 2; got {width}, {depth} and "
                f"{time_features}"
            )
        if not 0 < sigma < math.inf:
            raise InvalidInput(f"sigma must be a finite number above 0, not {sigma}")
        self.input_shape, self.sigma = tuple(input_shape), sigma
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
        angles = t[:, None] * self.frequencies
        z = self.enter(torch.cat([log_x.flatten(1), angles.cos(), angles.sin()], dim=1))
        for layer in self.hidden:
            z = z + nn.functional.silu(layer(z))
        noise: Tensor = self.leave(nn.functional.silu(z))
        return noise.view(log_x.shape)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the scaled scores (B, ...) of x (B, ...) above 0 at times t (B,) above 0."""
        scale = self.sigma * t.sqrt().view(-1, *[1] * (x.ndim - 1))
        return -1 - self.noise(x.log(), t) / scale
