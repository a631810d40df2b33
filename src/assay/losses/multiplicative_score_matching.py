"""Score matching on positive data: the denoising loss under multiplicative noise, and Hyvarinen's without noise.

Paper: "Dale meets Langevin" (arXiv:2510.02730, v1), multiplicative (denoising) score matching; Hyvarinen, "Some
extensions of score matching" (2007), eq. (28). Both learn the scaled score h(x) = x o grad log p(x):

    M-DSM      E |sigma^2 t h(x_t, t) + log x_t - log x_0 - mu t + 1.5 sigma^2 t|^2    x_t noised, t = k / N, 0 < k < N
    Hyvarinen  E sum_i [ 2 x_i s_i + x_i^2 d_i s_i + x_i^2 s_i^2 / 2 ] = E sum_i [ h_i + x_i d_i h_i + h_i^2 / 2 ]

with s = grad log p. Given x_0 the noised data have h = -1 - Z / (sigma sqrt(t)) with the noise Z, so in y = log x,
whose score is h + 1, M-DSM is denoising score matching with the weight sigma^4 t^2; as prediction of the noise,
eps = -sigma sqrt(t) (h + 1), it is sigma^2 t |eps - Z|^2.

Shapes: x, x_0 and h (B, ...), t (B,). The norm is summed over a sample's entries and averaged over samples.
Departures: networks give h = x o s, not s, which is far better conditioned at small t (the official code's network
gives s). Noise and loss use the same t (official code: one step off). The weighting "noise", |eps - Z|^2, is ours.
Cost: M-DSM one pass of the network; Hyvarinen's d forward-mode products for samples with d entries, or one per draw.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from assay.data.geometric_brownian import gbm_noise
from assay.errors import InvalidInput

__all__ = ["MultiplicativeDSM", "hyvarinen_nonneg", "multiplicative_dsm_loss"]

WEIGHTINGS = ("paper", "noise")


def multiplicative_dsm_loss(
    h: Tensor, x_t: Tensor, x0: Tensor, t: Tensor, sigma: float, mu: float, weighting: str = "paper"
) -> Tensor:
    """Return the denoising loss of scaled scores at noised data.

    Args:
        h: Scaled scores at (x_t, t), (B, ...).
        x_t: Noised data, as `assay.data.gbm_noise` gives them.
        x0: The data.
        t: Times, (B,), above 0.
        sigma: Volatility.
        mu: Drift.
        weighting: "paper", or "noise" for the error in units of the noise, which is 1 for a constant h = -1.

    Returns:
        A scalar.

    Example:
        >>> x0, t, z = torch.ones(1, 2), torch.tensor([0.25]), torch.tensor([[1.0, -2.0]])
        >>> x_t = x0 * torch.exp(0.8 * 0.5 * z)  # mu = sigma^2 / 2
        >>> round(multiplicative_dsm_loss(-1 - z / 0.4, x_t, x0, t, sigma=0.8, mu=0.32).item(), 6)
        0.0
    """
    times = t.view(-1, *[1] * (x0.ndim - 1))
    missed = sigma**2 * times * h + x_t.log() - x0.log() - mu * times + 1.5 * sigma**2 * times
    if weighting == "noise":
        missed = missed / (sigma * times.sqrt())
    return missed.square().flatten(1).sum(dim=1).mean()


class MultiplicativeDSM(nn.Module):
    """Multiplicative denoising score matching: noises data and scores a network.

    Args:
        sigma: Volatility of the noise, above 0.
        mu: Its drift; None is sigma^2 / 2.
        levels: N; times are k / N for k drawn from 1 to N - 1.
        weighting: "paper" weighs the error of the predicted noise by sigma^2 t, "noise" (ours) all times alike.
        generator: Draws times and noise; None is torch's global generator.

    Raises:
        InvalidInput: On an option out of its range; from `forward`, on data that are not above 0, or on scores of
            another shape.

    Example:
        >>> loss = MultiplicativeDSM(generator=torch.Generator().manual_seed(0))
        >>> loss(lambda x, t: -torch.ones_like(x), torch.ones(8, 3)).shape
        torch.Size([])
    """

    def __init__(
        self,
        sigma: float = 0.8,
        mu: float | None = None,
        *,
        levels: int = 1000,
        weighting: str = "paper",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if weighting not in WEIGHTINGS:
            raise InvalidInput(f"weighting must be one of {', '.join(WEIGHTINGS)}, not {weighting!r}")
        if levels < 2:
            raise InvalidInput(f"levels must be at least 2, not {levels}")
        if not sigma > 0:
            raise InvalidInput(f"sigma must be above 0, not {sigma}")
        self.sigma, self.mu = sigma, sigma**2 / 2 if mu is None else mu
        self.levels, self.weighting, self.generator = levels, weighting, generator

    def forward(self, scaled_score: Callable[[Tensor, Tensor], Tensor], x0: Tensor) -> Tensor:
        """Return the loss of a function (x_t, t) -> h at data (B, ...) above 0; each gets a time and a noise."""
        k = torch.randint(1, self.levels, (len(x0),), generator=self.generator, device=x0.device)
        t = k.to(x0.dtype) / self.levels
        x_t = gbm_noise(x0, t, self.sigma, self.mu, self.generator)
        h = scaled_score(x_t, t)
        if h.shape != x0.shape:
            raise InvalidInput(f"scores must have the data's shape {tuple(x0.shape)}, not {tuple(h.shape)}")
        return multiplicative_dsm_loss(h, x_t, x0, t, self.sigma, self.mu, self.weighting)


def hyvarinen_nonneg(
    scaled_score: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return Hyvarinen's loss for non-negative data: half the squared error of h, up to a constant.

    Args:
        scaled_score: From x (B, ...) to h of that shape, samples on their own. For a score s it is x * s(x).
        x: Data, (B, ...), 0 or more.
        samples: Random signs per evaluation to estimate the derivatives with; None computes them exactly.
        generator: Source of the signs; None is torch's global generator.

    Returns:
        A scalar, differentiable in the function's parameters.

    Raises:
        InvalidInput: If x is empty, not of a floating-point type or has an entry below 0, scores have another shape,
            or samples is below 1.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])  # for p(x) = exp(-x), s = -1
        >>> hyvarinen_nonneg(lambda x: -x, x)  # -x - x + x^2 / 2, summed
        tensor(-3.5000)
    """
    if not x.numel() or not x.is_floating_point():
        raise InvalidInput(
            f"expected at least one sample of a floating-point type; got shape {tuple(x.shape)}, {x.dtype}"
        )
    if not (x >= 0).all():
        raise InvalidInput(f"data must be at least 0; the smallest entry is {x.min().item():g}")
    if samples is not None and samples < 1:
        raise InvalidInput(f"samples must be at least 1, or None for the exact value, not {samples}")
    d = x[0].numel()
    if samples is None:
        directions = torch.eye(d, dtype=x.dtype, device=x.device).view(d, 1, *x.shape[1:]).expand(d, *x.shape)
    else:
        signs = torch.randint(2, (samples, *x.shape), generator=generator, device=x.device)
        directions = (2 * signs - 1).to(x.dtype)
    h = scaled_score(x)
    if h.shape != x.shape:
        raise InvalidInput(f"scores must have the data's shape {tuple(x.shape)}, not {tuple(h.shape)}")
    # v^T diag(x) J v: summed over unit vectors, or averaged over signs, this is sum_i x_i d_i h_i
    slope = torch.func.vmap(lambda v: torch.func.jvp(scaled_score, (x,), (v,))[1], randomness="same")
    slopes = (directions * x * slope(directions)).sum(dim=0) / (samples or 1)
    return (h + slopes + h.square() / 2).flatten(1).sum(dim=1).mean()
