"""A small variational auto-encoder: the generator of teacher-guided training, trained in seconds.

Kingma, Welling (arXiv:1312.6114), with a normal likelihood whose deviation is learned (as in Rybkin et al.,
arXiv:2006.13202); the generator of "Teacher Guided Training" (arXiv:2208.06825) at desk scale.

    q(z | x) = N(m(x), diag exp(v(x))),   p(x | z) = N(Dec(z), s^2 I),   p(z) = N(0, I)
    loss = E_q[ |x - Dec(z)|^2 / (2 s^2) + D log s + D/2 log(2 pi) ] + KL(q || p)        >= -log p(x)

Shapes: B samples of any shape with D entries, codes (B, d). Inputs should be standardised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models.mlp import MLP

__all__ = ["VAE"]


class VAE(nn.Module):
    """Variational auto-encoder with one fully connected network on each side; `vae(x)` is Dec(mean code of x).

    Args:
        input_shape: Shape of one sample.
        latent: d, dimension of the codes, at least 1.
        width: Units of each hidden layer.
        depth: Hidden layers of encoder and decoder each; with 0 both are affine.
        generator: Draws the initial weights; None is torch's global generator.

    Raises:
        InvalidInput: If a size is out of range.

    Example:
        >>> vae = VAE((1, 4, 4), latent=2, width=8)
        >>> vae.encode(torch.zeros(5, 1, 4, 4)).shape, vae.decode(torch.zeros(5, 2)).shape
        (torch.Size([5, 2]), torch.Size([5, 1, 4, 4]))
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        latent: int = 16,
        width: int = 256,
        depth: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if latent < 1:
            raise InvalidInput(f"latent must be at least 1; got {latent}")
        self.input_shape = tuple(input_shape)
        self.encoder = MLP(input_shape, 2 * latent, width=width, depth=depth, generator=generator)
        self.decoder = MLP((latent,), math.prod(input_shape), width=width, depth=depth, generator=generator)
        self.log_s = nn.Parameter(torch.zeros(()))

    def encode(self, x: Tensor) -> Tensor:
        """Return the mean codes (B, d) of inputs (B, ...)."""
        return self.posterior(x)[0]

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log-variances (B, d) of the codes of inputs (B, ...)."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """Return inputs (B, ...) of codes (B, d)."""
        x: Tensor = self.decoder(z).unflatten(1, self.input_shape)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return reconstructions (B, ...) from the mean codes."""
        return self.decode(self.encode(x))

    def negative_elbo(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the bound on -log p(x) in nats, per sample on average, with one draw of z for each.

        Args:
            x: Inputs (B, ...).
            generator: Draws z; None is torch's global generator.
        """
        mean, log_variance = self.posterior(x)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        missed = (x - self.decode(mean + (log_variance / 2).exp() * noise)).flatten(1)
        D = missed.shape[1]
        misfit = missed.square().sum(dim=1) / 2 * (-2 * self.log_s).exp() + D * (self.log_s + math.log(2 * math.pi) / 2)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
        return (misfit + divergence).mean()
